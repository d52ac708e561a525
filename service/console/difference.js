// What changes from one manifest to the next, made from the decoded bytes, in the very form in which the service tells
// it (service/admin/differences.py), so that the two can be compared; and what no agent would take.

import { MOST_SECONDS, contradictions } from "./consistency.js";
import { hex } from "./encoding.js";
import { Committee, Member, Rule, Terms } from "./terms.js";
import { day, ordinalOf, rfc3339, yuanPlain } from "./writing.js";

const LISTS = ["rules", "members", "committees"];
// They change with every manifest.
const ROUTINE = new Set(["serial", "previous", "issued_at", "valid_until"]);
const TIMES = new Set(["issued_at", "valid_until"]);
const CLOCK_SECONDS = 300; // how far ahead of this clock a manifest may have been issued

const isAhead = (terms, now) => Number(terms.issued_at) > now + CLOCK_SECONDS;

const isTimely = (terms, now) => !isAhead(terms, now) && terms.valid_until - terms.issued_at <= MOST_SECONDS;

const plain = (value) => {
  if (value instanceof Uint8Array) return hex(value);
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : value.toString();
  return value;
};

// The value of a field as it is told: yuan with two decimals, days ISO 8601, times RFC 3339 in UTC, bytes hexadecimal.
export const readable = (of, field) => {
  const value = of[field];
  if (field === "deposit_cap" || (field === "limit" && of.measure === "sum_insured")) return yuanPlain(value);
  if (field === "limit") return String(value);
  if (field === "valid_from") return day(value);
  if (field === "issued_at" || field === "valid_until") return rfc3339(value);
  return plain(value);
};

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

const told = (kind, item) => kind.fields.map((field) => readable(item, field));

// Whether two messages of a kind say the same, to the last field.
const alike = (kind, one, other) => same(kind.fields.map((field) => plain(one[field])), kind.fields.map((field) => plain(other[field])));

const fieldsOf = (kind, before, after) =>
  kind.fields.filter((field) => field !== "id").map((field) => ({
    field,
    before: before ? readable(before, field) : null,
    after: after ? readable(after, field) : null,
  }));

const nameOf = (rule) => `${rule.id} version ${rule.version}`;

const byKey = (items, keyOf) => new Map(items.map((item) => [keyOf(item), item]));

const highest = (rules) => rules.reduce((most, rule) => (most && most.version > rule.version ? most : rule), null);

// The version before one that is new; also one that ends with these terms: what takes its place is no new rule.
const before = (base, terms, rule) => highest([...byKey([...terms.rules, ...base.rules], nameOf).values()]
  .filter((one) => one.id === rule.id && one.version < rule.version));

const entriesOf = (name, kind, olds, news, earlier = () => null) => {
  const entry = (what, change, old, item, fields) => ({ kind: `${name}_${change}`, what, before: old, after: item, fields });
  const entries = [];
  for (const [what, item] of news) {
    const old = olds.get(what);
    if (old === undefined) {
      const from = earlier(item);
      entries.push(entry(what, "added", from, item, fieldsOf(kind, from, item)));
    } else if (!alike(kind, old, item)) {
      const changed = fieldsOf(kind, old, item).filter((change) => !same(change.before, change.after));
      entries.push(entry(what, "changed", old, item, changed));
    }
  }
  for (const [what, item] of olds) {
    if (!news.has(what)) entries.push(entry(what, "removed", item, null, fieldsOf(kind, item, null)));
  }
  return entries;
};

// What has the same things in another order, which the hash covers too.
const ordersOf = (base, terms, kinds) => LISTS.filter((list) => {
  const texts = (items) => items.map((item) => JSON.stringify(told(kinds[list], item)));
  const [olds, news] = [texts(base[list]), texts(terms[list])];
  const [known, kept] = [new Set(olds), new Set(news)];
  return !same(news.filter((text) => known.has(text)), olds.filter((text) => kept.has(text)));
}).map((list) => ({ kind: "order_changed", what: list, before: null, after: null, fields: [] }));

const KINDS = { rules: Rule, members: Member, committees: Committee };

// Entries `{kind, what, before, after, fields: [{field, before, after}]}`: rules first, then members, committees, and the
// rest. A new version of a rule is told with all its fields, beside those of the version before it. What changes with every
// manifest is `routine`, unless its times are out of bounds; `now` is this machine's clock, Unix seconds.
export const difference = (base, terms, now = Date.now() / 1000) => {
  const keyed = (keyOf) => (list) => [byKey(base[list], keyOf), byKey(terms[list], keyOf)];
  return [
    ...entriesOf("rule", Rule, ...keyed(nameOf)("rules"), (rule) => before(base, terms, rule)),
    ...entriesOf("member", Member, ...keyed((member) => member.id)("members")),
    ...entriesOf("committee", Committee, ...keyed((one) => `of shard ${one.shard}`)("committees")),
    ...ordersOf(base, terms, KINDS),
    ...Terms.fields.filter((field) => !LISTS.includes(field) && !same(plain(base[field]), plain(terms[field])))
      .map((field) => ({
        kind: "term_changed", what: field, before: null, after: null,
        routine: ROUTINE.has(field) && (!TIMES.has(field) || isTimely(terms, now)),
        fields: [{ field, before: readable(base, field), after: readable(terms, field) }],
      })),
  ];
};

// Numbers of 64 bits: JSON reads them as the nearest ones that JavaScript has.
const LARGE = new Set(["serial", "expected_persons"]);

const canonical = (entries) =>
  entries.map(({ kind, what, fields }) => JSON.stringify([kind, what, fields.map(({ field, before, after }) => {
    const near = (value) => (LARGE.has(field) && value !== null ? Number(value) : value);
    return [field, near(before), near(after)];
  })])).sort();

// Whether the service tells the same difference as the bytes, in whatever order.
export const isTold = (entries, byTheService) => {
  try {
    return same(canonical(entries), canonical(byTheService));
  } catch {
    return false;
  }
};

// What agents' databases and connections are bound to (protocol/manifest.py, require_succession and
// require_same_connections); committees and members' owners and keys, too.
const LASTING = [
  "alliance", "epoch", "tick_seconds", "shards", "salt_check", "blinding_key",
  "tls_authority", "plain_http", "service_signing_key", "local",
];

// Why agents would refuse these terms after those of the base, as [code, detail]; empty if they would take them.
// `baseHash` is the base's, in hexadecimal, `now` this machine's clock, Unix seconds.
export const objections = (base, terms, baseHash, now = Date.now() / 1000) => {
  const found = [];
  const object = (code, detail = "") => found.push([code, detail]);
  if (terms.serial <= base.serial || terms.issued_at < base.issued_at) object("manifest-older", `${base.serial} → ${terms.serial}`);
  else if (terms.serial !== base.serial + 1n) object("serial-skipped", `${base.serial} → ${terms.serial}`);
  if (hex(terms.previous) !== baseHash) object("other-previous");
  if (isAhead(terms, now)) object("from-the-future", rfc3339(terms.issued_at));
  for (const detail of contradictions(terms)) object("bad-manifest", detail);
  for (const field of LASTING) if (!same(plain(base[field]), plain(terms[field]))) object("lasting-term", field);
  const committees = (of) => of.committees.map((one) => told(Committee, one));
  if (!same(committees(base), committees(terms))) object("lasting-term", "committees");
  const owners = (of) => of.members.map((one) => [one.id, one.group, plain(one.signing_key), plain(one.sealing_key)]);
  if (!same(owners(base), owners(terms))) object("lasting-term", "members");
  if (terms.deposit_cap < base.deposit_cap) object("cap-lowered");
  const known = byKey(base.rules, nameOf);
  const firstDay = ordinalOf(terms.issued_at);
  for (const rule of terms.rules) {
    const old = known.get(nameOf(rule));
    const newest = highest(base.rules.filter((one) => one.id === rule.id));
    if (old && !alike(Rule, old, rule)) object("rule-rewritten", nameOf(rule));
    if (!old && newest && rule.version < newest.version) object("rule-version-order", nameOf(rule));
    if (!old && rule.valid_from < firstDay) object("rule-back-dated", nameOf(rule));
  }
  return found;
};
