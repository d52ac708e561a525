// Why terms are no good by themselves, whoever signs them: what `_check` of protocol/manifest.py refuses, in its words.

const NARROW = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const CURRENCY = /^[A-Z]{3}$/;
const UNPRINTABLE = /[[\p{C}\p{Z}]--[ ]]/v;
const LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?";
const ADDRESS = new RegExp(`^(https?)://(${LABEL}(\\.${LABEL})*|\\[[0-9A-Fa-f:.]{2,45}\\])(:([0-9]{1,5}))?$`);
const LAST_PORT = 65_535;
const LEAST_GROUPS = 5;
const PERSONS_A_SHARD = 10_000n;
const LEAST_TICK_SECONDS = 5;
export const MOST_SECONDS = 366n * 86_400n; // that a manifest may be valid
const ROOM = 1n << 46n;
const MEASURES = new Set(["sum_insured", "policy_count"]);
const SUBJECT_TYPES = new Set(["person"]);

const isAddress = (url, scheme) => {
  const parts = ADDRESS.exec(url);
  if (parts === null || parts[1] !== scheme) return false;
  const port = Number(parts.at(-1) ?? 1);
  return port > 0 && port <= LAST_PORT;
};

const distinct = (values) => new Set(values).size;
const differ = (values) => distinct(values) === values.length;
const isZero = (bytes) => bytes.every((byte) => byte === 0);
const versionOf = (rule) => `${rule.id} ${rule.version}`;

const ofMembers = (terms, require) => {
  const { members, committees } = terms;
  const groups = new Map(members.map((member) => [member.id, member.group]));
  require(members.every((member) => NARROW.test(member.id)), "a member id is letters, digits, dots and dashes");
  const scheme = terms.plain_http ? "http" : "https";
  require([terms.service_url, ...members.map((member) => member.url)].every((url) => isAddress(url, scheme)),
    `an address is ${scheme}://, a host and perhaps a port, nothing after it`);
  require((terms.plain_http === 1) === isZero(terms.tls_authority),
    "a manifest names the alliance's CA, unless all parties speak plain HTTP");
  require([terms.alliance, ...groups.values()].every((text) => !UNPRINTABLE.test(text)), "a name has characters that do not print");
  require(groups.size === members.length, "two members have one id");
  require(distinct([...groups.values()]) >= LEAST_GROUPS, "an alliance has members of at least 5 ownership groups");
  for (const key of ["signing_key", "sealing_key"]) {
    require(differ(members.map((member) => member[key].join())), "two members share a key");
  }
  require(committees.length === terms.shards && committees.every((one, shard) => one.shard === shard),
    "there is one committee for each shard, in order");
  for (const { slots } of committees) {
    require(slots.every((member) => groups.has(member)), "a committee names an unknown member");
    require(differ(slots.map((member) => groups.get(member))), "a committee has two slots of one ownership group");
  }
};

const ofRules = (terms, require) => {
  const { products, rules } = terms;
  require([...products, ...rules.flatMap((rule) => [rule.id, ...rule.products])].every((name) => NARROW.test(name)),
    "a product and a rule's id are ASCII letters, digits, dots and dashes, 64 at most");
  require(differ(products), "a product is listed twice");
  require(differ(rules.map(versionOf)), "a rule's version is listed twice");
  for (const rule of rules) {
    require(rule.products.every((product) => products.includes(product)), "a rule names an unknown product");
    require(differ(rule.products), "a rule names a product twice");
    require(rule.min_current <= distinct(terms.members.map((member) => member.id)),
      "a rule needs more current members than there are");
    require(CURRENCY.test(rule.currency), "a currency is three capital letters");
    require(MEASURES.has(rule.measure), "a rule has an unknown measure");
    require(SUBJECT_TYPES.has(rule.subject_type), "a rule is of an unknown type of subject");
  }
  const newest = new Map(); // the day of each rule's version before
  for (const rule of [...rules].sort((one, other) => one.version - other.version)) {
    require((newest.get(rule.id) ?? 0) <= rule.valid_from, "a later version of a rule is in force before an earlier one");
    newest.set(rule.id, rule.valid_from);
  }
};

const ofNumbers = (terms, require) => {
  const isLocal = terms.local === 1;
  require(isLocal || terms.expected_persons >= BigInt(terms.shards) * PERSONS_A_SHARD, "each shard has at least 10,000 persons");
  require(isLocal || terms.tick_seconds >= LEAST_TICK_SECONDS, "ticks are at least 5 seconds: clocks of several machines differ");
  const limit = terms.rules.reduce((most, rule) => Math.max(most, rule.limit), 0);
  require(BigInt(terms.members.length) * BigInt(terms.deposit_cap) + BigInt(limit) < ROOM,
    "members x deposit cap plus the largest limit must stay below 2^46");
  require(terms.issued_at < terms.valid_until, "the manifest would never be valid");
  require(terms.valid_until - terms.issued_at <= MOST_SECONDS, "a manifest is valid for 366 days at most");
};

// The reasons, each once; empty if there are none.
export const contradictions = (terms) => {
  const found = new Set();
  const require = (holds, why) => {
    if (!holds) found.add(why);
  };
  ofMembers(terms, require);
  ofRules(terms, require);
  ofNumbers(terms, require);
  return [...found];
};
