// The page: signing in, language, and which view is shown. All data is fetched when a view is opened or refreshed; the
// API key and what was fetched live in memory alone.

import { own, pins } from "./home.js";
import { make, badge } from "./nodes.js";
import { judgesOf } from "./examination.js";
import { membersShown, proposalsShown, rulesShown } from "./overview.js";
import { Refused, Service } from "./rest.js";
import { proposalShown } from "./review.js";
import { languageOf, speaker } from "./words.js";
import { digits, time, visible } from "./writing.js";

const SOON_MILLISECONDS = 14 * 86_400_000;
const root = document.getElementById("page");

let say = speaker(languageOf(navigator.language));
let service = null;
let overview = null;
let notice = null; // {kind, name of words or text}
let drawing = 0;

const placeOf = () => {
  const [, view, id] = /^#\/(members|rules|proposals)(?:\/([0-9a-f]{1,64}))?$/.exec(location.hash) ?? [null, "members"];
  return { view, id };
};

// What went wrong, in the reader's language where it is known, with the service's own words beside it.
const problemText = (error) => {
  if (!(error instanceof Refused)) return say("unreadable");
  const known = say.knows(`code-${error.code}`);
  const told = [error.detail, error.hint].filter(Boolean).map((text) => visible(text)).join("; ");
  return `${known ? say(`code-${error.code}`) : say("refused", error.code)}${told && ` (${told})`}`;
};

const signOut = (text) => {
  service = overview = null;
  notice = text ? { kind: "bad", text } : null;
  draw();
};

const failed = (error, place) => {
  if (error instanceof Refused && error.status === 401) signOut(problemText(error));
  else place.textContent = problemText(error);
};

const done = (text, kind = "good") => {
  notice = { kind, text };
  draw();
};

const languages = () => make("div", { class: "languages", role: "group", "aria-label": say("language") },
  [["zh", "中文"], ["en", "English"]].map(([language, name]) => make("button", {
    type: "button", lang: language, "aria-pressed": String(say.language === language), "data-language": language,
    onclick: () => {
      say = speaker(language);
      notice = null; // it was in the other language
      draw();
    },
  }, name)));

const noticeShown = () => make("div", { id: "notice", role: notice?.kind === "bad" ? "alert" : "status", class: notice?.kind ?? "" },
  notice?.text ?? "");

const footer = () => {
  const origin = own ? "from-home" : "from-service";
  return make("footer", null, make("p", { class: "quiet" }, say(origin)), make("p", { class: "quiet" }, say("times")));
};

const signInShown = () => {
  const key = make("input", { id: "api-key", type: "password", autocomplete: "off", spellcheck: "false", required: true, "aria-describedby": "sign-in-why" });
  const button = make("button", { class: "primary", type: "submit" }, say("enter"));
  const problem = make("p", { role: "alert", class: "problem", id: "sign-in-problem" });
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    problem.textContent = "";
    try {
      const asked = new Service(key.value.trim());
      const answer = await asked.get("overview");
      headerShown(answer, ""); // it has what it should have, or this fails
      [service, overview] = [asked, answer];
      notice = null;
      draw();
    } catch (error) {
      problem.textContent = problemText(error);
    } finally {
      key.value = "";
      button.disabled = false;
    }
  };
  return [
    make("header", null, make("div", { class: "top" }, make("h1", null, say("title")), languages())),
    make("main", null, noticeShown(),
      make("form", { id: "sign-in", onsubmit: submit, autocomplete: "off" },
        make("h2", { tabindex: -1 }, say("sign-in")),
        make("p", { id: "sign-in-why" }, say("sign-in-why")),
        make("p", null, make("label", { for: "api-key" }, say("api-key")), key),
        make("p", null, button), problem)),
    footer(),
  ];
};

const warnings = ({ manifest, now }) => {
  const left = Date.parse(manifest.valid_until) - Date.parse(now);
  const until = time(manifest.valid_until);
  return [
    left <= 0 && make("p", { class: "alarm", role: "alert" }, say("expired-manifest", until)),
    left > 0 && left < SOON_MILLISECONDS && make("p", { class: "note" }, say("expires-soon", until)),
    pins && !judgesOf(pins, overview).agree && make("p", { class: "alarm", role: "alert" }, say("other-admins")),
  ];
};

const headerShown = (told, view) => {
  const { alliance, name, role, manifest, now, key_expires_at: expires } = told;
  const tab = (target) => make("a", { href: `#/${target}`, "aria-current": view === target ? "page" : null }, say(target));
  return make("header", null,
    make("div", { class: "top" },
      make("h1", null, make("span", { class: "alliance" }, visible(alliance)), " ", make("small", null, say("title"))),
      languages()),
    make("div", { class: "who" },
      make("p", null, say("manifest-in-force"), " ", make("strong", null, say("serial", manifest.serial)), " ",
        make("code", { title: visible(manifest.hash) }, digits(manifest.hash.slice(0, 16))), " · ", say("valid-until", time(manifest.valid_until))),
      make("p", null, badge(role === "admin" ? "wait" : "quiet", say("signed-in", name, say.or(`role-${role}`, role))), " ",
        expires && make("span", { class: "quiet" }, say("key-until", time(expires))), " ",
        make("button", { type: "button", "data-action": "sign-out", onclick: () => signOut() }, say("sign-out")))),
    make("nav", { "aria-label": say("title") }, tab("members"), tab("rules"), tab("proposals"),
      make("span", { class: "as-of" }, say("as-of", time(now, 19)), " ",
        make("button", { type: "button", "data-action": "refresh", onclick: () => { notice = null; draw(); } }, say("refresh")))));
};

const viewOf = async (page, { view, id }) => {
  if (view === "members") return membersShown(page.say, page.overview);
  if (view === "rules") return rulesShown(page.say, await page.service.get("rules"));
  if (!id) return proposalsShown(page.say, await page.service.get("proposals"));
  const paths = [`proposals/${id}`, "manifest", "proposals"];
  const [proposal, manifest, { proposals }] = await Promise.all(paths.map((path) => page.service.get(path)));
  return proposalShown(page, id, proposal, manifest, proposals);
};

// Draws the view that the address names, from fresh data. Of several drawings under way the last one alone is shown.
const draw = async () => {
  drawing += 1;
  const mine = drawing;
  document.documentElement.lang = say.language === "zh" ? "zh-CN" : "en";
  document.title = say("title");
  if (service === null) {
    root.replaceChildren(...signInShown());
    return;
  }
  root.setAttribute("aria-busy", "true");
  const place = placeOf();
  const asked = service;
  let shown;
  try {
    const renewed = await asked.get("overview");
    headerShown(renewed, place.view);
    if (mine !== drawing) return;
    shown = await viewOf({ say, service: asked, overview: renewed, pins, done, failed }, place);
    overview = renewed;
  } catch (error) {
    if (mine !== drawing) return;
    const problem = make("p", { role: "alert", class: "problem" });
    failed(error, problem);
    if (service === null) return;
    shown = [problem];
  }
  if (mine !== drawing) return;
  const main = make("main", null, warnings(overview), noticeShown(), shown.flat(Infinity).filter(Boolean));
  root.replaceChildren(headerShown(overview, place.view), main, footer());
  root.removeAttribute("aria-busy");
  main.querySelector("h2")?.focus({ preventScroll: false });
};

window.addEventListener("hashchange", () => {
  notice = null;
  draw();
});
draw();
