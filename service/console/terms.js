// The messages of protocol/manifest.py that this page reads. A test compares the fields with Python's.

import { blob, fixed, message, seq, text, uint } from "./encoding.js";

const NAME = text(64);
const HASH = fixed(32);
const FLAG = uint(8, { most: 1 });
const LAST_DAY = 3652059; // 9999-12-31
const DAYS = uint(16, { least: 1, most: 366 });

export const Member = await message("member", 1, {
  id: NAME,
  group: NAME,
  url: text(200),
  signing_key: fixed(32),
  sealing_key: fixed(32),
});

export const Rule = await message("rule", 2, {
  id: NAME,
  version: uint(32, { least: 1 }),
  products: seq(NAME, { least: 1, most: 64 }),
  subject_type: NAME,
  window_days: DAYS,
  measure: NAME,
  limit: uint(48),
  currency: NAME,
  budget: uint(32, { least: 1 }),
  recheck_budget: uint(32),
  budget_days: DAYS,
  valid_from: uint(32, { least: 1, most: LAST_DAY }),
  min_current: uint(16),
});

export const Committee = await message("committee", 1, {
  shard: uint(32),
  version: uint(32, { least: 1 }),
  slots: seq(NAME, { least: 5, most: 7 }),
});

export const Terms = await message("manifest", 2, {
  alliance: NAME,
  serial: uint(64, { least: 1 }),
  previous: HASH,
  local: FLAG,
  issued_at: uint(64),
  valid_until: uint(64),
  tick_seconds: uint(16, { least: 1, most: 20 }),
  shards: uint(32, { least: 1, most: 4096 }),
  expected_persons: uint(64),
  deposit_cap: uint(48, { least: 1 }),
  salt_check: HASH,
  plain_http: FLAG,
  tls_authority: HASH,
  service_url: text(200),
  service_signing_key: fixed(32),
  blinding_key: fixed(32),
  epoch: uint(32, { least: 1 }),
  products: seq(NAME, { least: 1, most: 256 }),
  rules: seq(Rule, { most: 1024 }),
  members: seq(Member, { most: 4096 }),
  committees: seq(Committee, { most: 4096 }),
});

const AdminSignature = await message("signature of an admin", 1, { admin: NAME, signature: fixed(64) });

export const SignedManifest = await message("signed manifest", 1, {
  terms: blob(16 << 20),
  signatures: seq(AdminSignature, { most: 256 }),
});
