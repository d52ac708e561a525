// How fields of terms are shown to people, and the difference between two manifests with what matters most first.

import { readable } from "./difference.js";
import { facts, make, table } from "./nodes.js";
import { count, digits, fenOf, inWords, quoted, time, visible, yuan } from "./writing.js";

const HEX = new Set([
  "signing_key", "sealing_key", "service_signing_key", "blinding_key", "tls_authority", "salt_check", "previous",
]);
const DAYS = new Set(["window_days", "budget_days"]);
const TIMES = new Set(["issued_at", "valid_until"]);
const COUNTS = new Set(["budget", "recheck_budget", "min_current", "expected_persons"]);

// A limit, as the service writes it, with its unit: yuan has two decimals, a count of policies none.
export const limitText = (say, text) =>
  (fenOf(text) === null ? say("policies", count(text)) : say("yuan", yuan(text)));

export const fieldName = (say, field) => say.or(`field-${field}`, field);

export const valueText = (say, field, value) => {
  if (value === null || value === undefined) return "—";
  if (Array.isArray(value)) return value.length ? value.map(quoted).join(say.language === "zh" ? "、" : ", ") : say("none");
  if (field === "limit" || field === "deposit_cap") return limitText(say, value);
  if (DAYS.has(field)) return say("days", count(value));
  if (field === "tick_seconds") return say("seconds", count(value));
  if (TIMES.has(field)) return time(value, 19);
  if (HEX.has(field)) return digits(value);
  if (COUNTS.has(field)) return count(value);
  if (field === "measure" || field === "subject_type") return say.or(value, value);
  return visible(value);
};

const fieldTable = (say, caption, fields) => table(caption, [say("field"), say("before"), say("after")],
  fields.map(({ field, before, after }) => ({
    kind: "change",
    cells: [fieldName(say, field), valueText(say, field, before), make("strong", null, valueText(say, field, after))],
  })), "unseen");

const percent = (before, after) => {
  const share = ((after - before) / before) * 100;
  const shown = Math.abs(share) >= 10 ? share.toFixed(0) : share.toFixed(2);
  return `${share > 0 ? "+" : ""}${shown.replace("-", "−")} %`;
};

const MARKS = { raised: "▲ ", lowered: "▼ ", new: "", ends: "✕ ", "other-measure": "⚠ " };

// What happens to the limit of a rule, told as large as it matters; null where the rule's limit stays as it is.
const limitChange = (say, entry) => {
  const change = entry.fields.find(({ field }) => field === "limit");
  const { before, after } = entry;
  if (!change) return null;
  if (before && after && before.limit === after.limit && before.measure === after.measure) {
    return make("p", null, say("limit-same", limitText(say, change.after)));
  }
  const [old, fresh] = [change.before, change.after].map((text) => text && fenOf(text));
  const words = (fen) => (fen ? inWords(fen, say.language) : "");
  let kind = "new";
  if (!after) kind = "ends";
  else if (before) kind = before.measure === after.measure ? (after.limit > before.limit ? "raised" : "lowered") : "other-measure";
  const figure = (text, fen, tag, name) => make(tag, { class: `figure ${name}` }, limitText(say, text),
    words(fen) && make("small", null, words(fen)));
  const by = before && after && before.measure === after.measure && before.limit > 0;
  const rule = after ?? before;
  return make("div", { class: `limit ${kind}`, role: "group", "aria-label": say(`limit-${kind}`) },
    make("p", { class: "limit-what" }, make("span", { class: "limit-kind" }, MARKS[kind], say(`limit-${kind}`)), " ",
      make("span", null, say("limit-from", rule.id, rule.version, readable(rule, "valid_from")))),
    make("p", { class: "figures" },
      change.before && figure(change.before, old, "span", "old"),
      change.before && change.after && make("span", { class: "arrow", role: "img", "aria-label": say("becomes") }, "→"),
      change.after && figure(change.after, fresh, "strong", "fresh")),
    by && make("p", { class: "limit-by" }, say("limit-by",
      limitText(say, readable({ measure: after.measure, limit: Math.abs(after.limit - before.limit) }, "limit")),
      percent(before.limit, after.limit))));
};

const GRAVE = new Set([
  "rule_removed", "rule_changed", "member_removed", "committee_added", "committee_changed", "committee_removed",
]);

// What an entry is about, in the reader's language.
const whatOf = (say, entry) => {
  const item = entry.after ?? entry.before;
  if (entry.kind.startsWith("rule_")) return say("rule-name", item.id, item.version);
  if (entry.kind.startsWith("committee_")) return say("shard-name", item.shard);
  if (entry.kind === "term_changed" || entry.kind === "order_changed") return fieldName(say, entry.what);
  return entry.what;
};

const titleOf = (say, entry) =>
  say(entry.kind === "rule_added" && !entry.before ? "rule_first" : entry.kind, whatOf(say, entry));

const differs = ({ before, after }) => JSON.stringify(before) !== JSON.stringify(after);

// The title of an entry and, if its limit is another, that.
export const promiseOf = (say, entry) => {
  const limit = entry.fields.find((change) => change.field === "limit" && differs(change));
  const text = limit && [limit.before, limit.after].filter(Boolean).map((one) => limitText(say, one)).join(" → ");
  return `${titleOf(say, entry)}${limit ? say("promised-limit", text) : ""}`;
};

const changesShown = (say, entry, changed) => {
  if (entry.before && entry.after || entry.kind === "term_changed") return fieldTable(say, say("fields-of", whatOf(say, entry)), changed);
  const which = entry.after ? "after" : "before"; // it is new, or ends: there is one side only
  return facts("", changed.map((change) => [fieldName(say, change.field), valueText(say, change.field, change[which])]));
};

const entryShown = (say, entry) => {
  const changed = entry.fields.filter(differs);
  const kept = entry.fields.filter((change) => !differs(change));
  return make("section", { class: `entry ${GRAVE.has(entry.kind) ? "grave" : ""}`, "data-kind": entry.kind },
    make("h4", null, titleOf(say, entry)),
    entry.kind.startsWith("rule_") && limitChange(say, entry),
    changed.length > 0 && changesShown(say, entry, changed),
    kept.length > 0 && make("details", null, make("summary", null, say("unchanged", kept.length)),
      facts("", kept.map(({ field, after }) => [fieldName(say, field), valueText(say, field, after)]))));
};

export const isRoutine = (entry) => entry.routine === true;

const isOfALimit = (entry) => entry.fields.some(({ field, before, after }) => field === "limit" && before !== after);

// The whole difference: limits first, then the rest, last what changes with every manifest.
export const differenceShown = (say, entries) => {
  const routine = entries.filter(isRoutine);
  const weighty = entries.filter((entry) => !isRoutine(entry));
  weighty.sort((one, other) => isOfALimit(other) - isOfALimit(one)); // stable: the order is kept otherwise
  return [
    weighty.length ? weighty.map((entry) => entryShown(say, entry)) : make("p", null, say("changes-none")),
    routine.length > 0 && make("section", { class: "entry", "data-kind": "routine" }, make("h4", null, say("routine")),
      fieldTable(say, say("routine"), routine.flatMap((entry) => entry.fields))),
  ];
};

const messageShown = (say, kind, item) =>
  facts("", kind.fields.map((field) => [fieldName(say, field), valueText(say, field, readable(item, field))]));

// Every field of the terms, lists folded.
export const termsShown = (say, kinds, terms) => {
  const lists = Object.keys(kinds);
  const single = kinds.terms.fields.filter((field) => !lists.includes(field));
  return [
    facts("", single.map((field) => [fieldName(say, field), valueText(say, field, readable(terms, field))])),
    lists.filter((list) => list !== "terms").map((list) => make("details", null,
      make("summary", null, `${fieldName(say, list)}: ${count(terms[list].length)}`),
      terms[list].map((item) => make("div", { class: "item" }, make("h5", null, visible(item.id ?? item.shard)),
        messageShown(say, kinds[list], item))))),
  ];
};
