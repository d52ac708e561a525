// What this page finds out by itself of a proposal before anyone may sign it, from the bytes alone.

import { difference, isTold, objections } from "./difference.js";
import { decode, fromBase64, hex, sha256 } from "./encoding.js";
import { signers } from "./signing.js";
import { SignedManifest, Terms } from "./terms.js";

const ID_DIGITS = 16;

const tried = async (step) => {
  try {
    return await step();
  } catch {
    return undefined; // what cannot be read is not as it should be
  }
};

const isInForce = (baseHash, threshold, admins, manifest) => tried(async () => {
  const signed = decode(SignedManifest, fromBase64(manifest.signed));
  const hash = hex(await sha256(signed.terms));
  return hash === manifest.hash && hash === baseHash && (await signers(signed, admins)).length >= threshold;
});

// The admins and the threshold by which signatures are judged: those that the reader pins, else those of the service.
export const judgesOf = (pins, overview) => {
  if (pins === null) return { admins: overview.admins, threshold: overview.threshold, agree: true };
  const admins = Object.entries(pins.keys).map(([name, key]) => ({ name, public_key: key }));
  const keyed = (list) => JSON.stringify(list.map((admin) => [admin.name, admin.public_key]).sort());
  const agree = pins.threshold === overview.threshold && keyed(admins) === keyed(overview.admins);
  return { admins, threshold: pins.threshold, agree };
};

// Returns `{bytes, terms, base, hash, entries, checks: [[name, passed]], objections, sound}`. Terms that cannot be decoded
// are undefined, and nothing is sound then. `id` is what was asked for, `pins` the reader's own or null.
export const examine = async (id, proposal, manifest, overview, pins) => {
  const judges = judgesOf(pins, overview);
  const bytes = await tried(() => fromBase64(proposal.terms));
  const baseBytes = await tried(() => fromBase64(proposal.base));
  const terms = await tried(() => decode(Terms, bytes));
  const base = await tried(() => decode(Terms, baseBytes));
  const hash = bytes && hex(await sha256(bytes));
  const baseHash = baseBytes && hex(await sha256(baseBytes));
  const entries = terms && base ? difference(base, terms) : [];
  const found = terms && base ? objections(base, terms) : [];
  const checks = [
    ["decoded", terms !== undefined && base !== undefined],
    ["id", hash !== undefined && hash.slice(0, ID_DIGITS) === id && proposal.id === id && String(terms?.serial) === String(proposal.serial)],
    ["base", baseHash !== undefined && baseHash === proposal.base_hash],
    ["told", terms !== undefined && base !== undefined && isTold(entries, proposal.difference)],
  ];
  if (proposal.state === "open") {
    checks.push(["in-force", (await isInForce(baseHash, judges.threshold, judges.admins, manifest)) === true]);
    checks.push(["succession", terms !== undefined && base !== undefined && found.length === 0]);
  }
  if (pins !== null) checks.push(["admins", judges.agree]);
  return { bytes, terms, base, hash, baseHash, entries, checks, objections: found, judges, sound: checks.every(([, passed]) => passed) };
};
