// The members with their watermarks, and the rules with their history.

import { badge, make, table } from "./nodes.js";
import { limitText, valueText } from "./terms_shown.js";
import { count, time, visible } from "./writing.js";

const MINUTE = 60_000;

// A text that stays on one line.
const line = (text) => make("span", { class: "whole-line" }, text);

const span = (say, milliseconds) => {
  const minutes = Math.max(0, Math.floor(milliseconds / MINUTE));
  if (minutes < 60) return say("span-minutes", minutes);
  if (minutes < 24 * 60) return say("span-hours", Math.floor(minutes / 60), minutes % 60);
  return say("span-days", count(Math.floor(minutes / 1440)), Math.floor((minutes % 1440) / 60));
};

const stateOf = (say, member, now) => {
  if (member.current) return badge("good", say("current"));
  if (member.current_until === null) return [badge("bad", say("behind")), " ", say("never-reported")];
  return [badge("bad", say("behind")), " ", say("behind-since", time(member.current_until)), say("comma"),
    say("behind-for", span(say, Date.parse(now) - Date.parse(member.current_until)))];
};

// Members that are behind come first.
export const membersShown = (say, overview) => {
  const members = [...overview.members].sort((one, other) => one.current - other.current);
  return [
    make("h2", { tabindex: -1 }, say("members")),
    table(say("members-caption", count(members.length), count(members.filter((member) => member.current).length)),
      [say("member"), say("state"), say("complete-until"), say("group"), say("url")],
      members.map((member) => ({
        kind: member.current ? "" : "behind",
        cells: [
          visible(member.id), stateOf(say, member, overview.now),
          member.current_until === null ? "—" : line(time(member.current_until)), visible(member.group), visible(member.url),
        ],
      }))),
  ];
};

const STATES = { in_force: "good", coming: "wait", past: "quiet" };

const versionRow = (say, version) => ({
  kind: version.state === "in_force" ? "in-force" : "",
  cells: [
    visible(version.version),
    badge(STATES[version.state] ?? "quiet", say.or(version.state, version.state)),
    line(visible(version.valid_from)),
    make("strong", { class: "whole-line" }, limitText(say, version.limit)),
    [valueText(say, "measure", version.measure), make("br"), valueText(say, "window_days", version.window_days)],
    version.products.map((product) => make("div", null, line(visible(product)))),
    valueText(say, "subject_type", version.subject_type),
    say("budget-of", count(version.budget), count(version.budget_days), count(version.recheck_budget)),
    count(version.min_current),
  ],
});

export const rulesShown = (say, { rules }) => [
  make("h2", { tabindex: -1 }, say("rules")),
  rules.length === 0 && make("p", null, say("rules-none")),
  rules.map((rule) => make("section", { class: "rule" },
    make("h3", null, visible(rule.id)),
    table(say("versions-of", rule.id),
      [
        say("version"), say("state"), say("field-valid_from"), say("field-limit"), say("field-window_days"),
        say("field-products"), say("field-subject_type"), say("field-budget"), say("field-min_current"),
      ],
      [...rule.versions].sort((one, other) => other.version - one.version).map((version) => versionRow(say, version))))),
];

const PROPOSAL_STATES = { open: "wait", published: "good", stale: "quiet", expired: "quiet", withdrawn: "quiet" };

export const proposalState = (say, state) => badge(PROPOSAL_STATES[state] ?? "quiet", say.or(state, state));

export const proposalsShown = (say, { proposals }) => [
  make("h2", { tabindex: -1 }, say("proposals")),
  proposals.length === 0
    ? make("p", null, say("proposals-none"))
    : table(say("proposals-caption"),
      [say("proposal"), say("state"), say("comment"), say("field-serial"), say("signatures"), say("proposed"), say("expires")],
      proposals.map((proposal) => ({
        kind: proposal.state,
        cells: [
          make("a", { class: "whole-line", href: `#/proposals/${encodeURIComponent(proposal.id)}` }, visible(proposal.id)),
          proposalState(say, proposal.state), visible(proposal.comment), count(proposal.serial),
          line(say("of-needed", count(proposal.signed_by.length), count(proposal.threshold))),
          [visible(proposal.proposed_by), make("br"), line(time(proposal.proposed_at))], line(time(proposal.expires_at)),
        ],
      }))),
];
