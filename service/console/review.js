// One proposal: what changes, what was checked, who signed, and the forms that sign, publish and withdraw it.

import { differenceShown, isRoutine, promiseOf, termsShown } from "./terms_shown.js";
import { hex } from "./encoding.js";
import { examine } from "./examination.js";
import { ask, badge, facts, make } from "./nodes.js";
import { proposalState } from "./overview.js";
import { KeyFileError, sign, supported } from "./signing.js";
import { Committee, Member, Rule, Terms } from "./terms.js";
import { count, digits, time, visible } from "./writing.js";

const MOST_PROMISES = 12;
const KINDS = { terms: Terms, rules: Rule, members: Member, committees: Committee };

// What a key may do the service says, and decides; a role alone says it where there is no scope.
const mayDo = ({ role, may }, action) => role === "admin" && (may === undefined || may.includes(action));

const checksShown = (say, found) => make("details", { class: "checks", open: !found.sound, id: "checks" },
  make("summary", null, say("checked"), " ", badge(found.sound ? "good" : "bad", say(found.sound ? "passed" : "failed"))),
  make("ul", null, found.checks.map(([name, passed]) => make("li", { class: passed ? "passed" : "failed", "data-check": name },
    badge(passed ? "good" : "bad", say(passed ? "passed" : "failed")), " ", say(`check-${name}`)))));

const alarm = (say, found) => !found.sound && make("div", { class: "alarm", role: "alert", id: "alarm" },
  make("p", { class: "alarm-title" }, say("do-not-sign")),
  make("p", null, say("do-not-sign-why")),
  make("ul", null,
    found.checks.filter(([, passed]) => !passed).map(([name]) => make("li", null, badge("bad", say("failed")), " ", say(`failed-${name}`))),
    found.objections.map(([code, detail]) => make("li", null, say(`objection-${code}`, detail)))));

const signaturesShown = (say, found) => [
  make("h3", null, say("signatures")),
  make("p", { class: "signed-of" }, say("signed-of", count(found.signedBy.length), count(found.judges.threshold))),
  make("ul", { class: "signatures" }, found.judges.admins.map((admin) => {
    const signed = found.signedBy.includes(admin.name);
    return make("li", { "data-signed": String(signed) }, visible(admin.name), " ",
      badge(signed ? "good" : "quiet", say(signed ? "has-signed" : "not-signed")));
  })),
];

// What an admin ticks: each change that weighs by itself, or all at once where there are none but dates.
const promises = (say, found) => {
  const weighty = found.entries.filter((entry) => !isRoutine(entry));
  const texts = weighty.length > 0 && weighty.length <= MOST_PROMISES
    ? weighty.map((entry) => say("i-read", promiseOf(say, entry))) : [say("i-read-all")];
  return texts.map((text) => make("p", null, make("label", { class: "tick" },
    make("input", { type: "checkbox", required: true, name: "read" }), " ", make("span", null, text))));
};

const signForm = (page, proposal, found) => {
  const { say } = page;
  const { admins, threshold } = found.judges;
  const open = admins.filter((admin) => !found.signedBy.includes(admin.name));
  const own = open.some((admin) => admin.name === page.overview.name) ? page.overview.name : "";
  const names = make("select", { id: "signer", required: true },
    make("option", { value: "" }, say("choose")),
    open.map((admin) => make("option", { value: admin.name, selected: admin.name === own }, visible(admin.name))));
  const file = make("input", { type: "file", id: "key-file", required: true, "aria-describedby": "key-why" });
  const problem = make("p", { role: "alert", class: "problem", id: "sign-problem" });
  const button = make("button", { class: "primary", type: "submit" }, say("sign-now"));
  const submit = async (event) => {
    event.preventDefault();
    const admin = admins.find((one) => one.name === names.value);
    problem.textContent = "";
    button.disabled = true;
    button.textContent = say("signing");
    try {
      const signature = await sign(file.files[0], admin, admins, found.bytes);
      await page.service.post(`proposals/${proposal.id}/signatures`, { admin: admin.name, signature: hex(signature) });
      const renewed = await page.service.get(`proposals/${proposal.id}`);
      page.done(say("signed-done", admin.name, count(renewed.signed_by.length), count(threshold)));
    } catch (error) {
      if (error instanceof KeyFileError) problem.textContent = say(error.message, error.cause ?? "", admin.name);
      else if (error instanceof DOMException) problem.textContent = say("not-a-key");
      else page.failed(error, problem);
    } finally {
      file.value = ""; // nothing of the key stays
      button.disabled = false;
      button.textContent = say("sign-now");
    }
  };
  return make("form", { id: "sign", onsubmit: submit, autocomplete: "off" },
    make("h3", null, say("sign")),
    make("p", { class: "quiet" }, say("compare")),
    promises(say, found),
    make("p", null, make("label", { for: "signer" }, say("sign-as")), names),
    make("p", null, make("label", { for: "key-file" }, say("key-file")), file),
    make("p", { class: "quiet", id: "key-why" }, say("key-why")),
    make("p", null, button), problem);
};

// A step that the service does when asked, after the admin has confirmed it.
const step = (page, name, title, why, perform) => {
  const { say } = page;
  const problem = make("p", { role: "alert", class: "problem" });
  const button = make("button", { type: "button", "data-action": name, onclick: async () => {
    if (!(await ask(title, why, say(name), say("cancel")))) return;
    problem.textContent = "";
    button.disabled = true;
    try {
      await perform();
    } catch (error) {
      page.failed(error, problem);
    } finally {
      button.disabled = false;
    }
  } }, say(name));
  return { button, problem };
};

const stepsShown = (page, proposal, found, may) => {
  const { say } = page;
  const steps = [];
  const enough = found.signedBy.length >= found.judges.threshold;
  if (may("publish") && found.sound && enough) {
    const title = say("publish-ask", count(found.terms.serial));
    const changes = found.entries.filter((entry) => !isRoutine(entry)).slice(0, MOST_PROMISES).map((entry) => promiseOf(say, entry));
    steps.push(step(page, "publish", title, [...changes, digits(found.hash), say("publish-why")], async () => {
      const done = await page.service.post(`proposals/${proposal.id}/publish`);
      if (done.hash === found.hash) page.done(say("publish-done", count(done.serial)));
      else page.done(say("publish-other"), "bad");
    }));
    steps[0].button.classList.add("primary");
  }
  if (may("withdraw")) {
    steps.push(step(page, "withdraw", say("withdraw-ask", proposal.id), [say("withdraw-why")], async () => {
      await page.service.post(`proposals/${proposal.id}/withdraw`);
      page.done(say("withdraw-done"));
    }));
  }
  return steps.length > 0 && make("section", { "aria-label": say("publish") },
    found.sound && !enough && make("p", { class: "quiet" }, say("under-signed-yet", count(found.judges.threshold))),
    make("div", { class: "actions" }, steps.map(({ button }) => button)), steps.map(({ problem }) => problem));
};

const wholeShown = (say, found) => found.terms && make("details", { class: "whole" },
  make("summary", null, say("whole")), termsShown(say, KINDS, found.terms));

// Other proposals of the serial that could be published in this one's place.
const rivalsShown = (say, proposal, all) => {
  const rivals = all.filter((one) => one.serial === proposal.serial && one.id !== proposal.id
    && (one.state === "open" || one.signed_by.length > 0));
  return proposal.state === "open" && rivals.length > 0 && make("div", { class: "note", id: "rivals" },
    make("p", null, say("rivals", count(proposal.serial))),
    make("ul", null, rivals.map((one) => make("li", null,
      make("a", { href: `#/proposals/${encodeURIComponent(one.id)}` }, visible(one.id)), " ", proposalState(say, one.state), " ",
      one.signed_by.length > 0 && say("signed-by", one.signed_by.join(", "))))));
};

// Returns what shows a proposal, of `all`. Whoever may not write gets no form and no button that does.
export const proposalShown = async (page, id, proposal, manifest, all) => {
  const { say } = page;
  const found = await examine(id, proposal, manifest, page.overview, page.pins);
  const may = (action) => proposal.state === "open" && mayDo(page.overview, action);
  const left = found.judges.admins.some((admin) => !found.signedBy.includes(admin.name));
  const signs = may("sign") && found.sound && left;
  const steps = stepsShown(page, proposal, found, may);
  const form = signs && ((await supported()) ? signForm(page, proposal, found) : make("p", { class: "note" }, say("no-ed25519")));
  return [
    make("p", null, make("a", { href: "#/proposals" }, "← ", say("back"))),
    make("h2", { tabindex: -1 }, say("proposal"), " ", make("code", null, visible(proposal.id)), " ", proposalState(say, proposal.state)),
    make("p", { class: "comment" }, visible(proposal.comment)),
    alarm(say, found),
    rivalsShown(say, proposal, all),
    facts("", [
      [say("proposed"), say("by-at", proposal.proposed_by, time(proposal.proposed_at))],
      [say("expires"), time(proposal.expires_at)],
      [say("field-serial"), found.terms && found.base ? `${count(found.base.serial)} → ${count(found.terms.serial)}` : count(proposal.serial)],
    ]),
    make("h3", null, say("changes")),
    make("div", { id: "difference" }, differenceShown(say, found.entries)),
    facts("wide", [
      [say("hash"), make("code", { class: "digits", id: "hash" }, found.hash ? digits(found.hash) : "—")],
      [say("base-hash"), make("code", { class: "digits" }, found.baseHash ? digits(found.baseHash) : "—")],
    ]),
    checksShown(say, found),
    wholeShown(say, found),
    signaturesShown(say, found),
    ...(found.signedBy.length >= found.judges.threshold ? [steps, form] : [form, steps]),
  ];
};
