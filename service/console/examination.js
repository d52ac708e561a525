// What this page finds out by itself of a proposal before anyone may sign it, from the bytes alone.

import { difference, isTold, objections } from "./difference.js";
import { decode, fromBase64, fromHex, hex, sha256 } from "./encoding.js";
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

// Whether a signed manifest (base64) has these terms and enough signatures; every one of an admin must verify.
const isSigned = async (signed, hash, judges) => {
  const manifest = decode(SignedManifest, fromBase64(signed));
  return hex(await sha256(manifest.terms)) === hash
    && (await signers(manifest.terms, manifest.signatures, judges.admins)).length >= judges.threshold;
};

// The names of those whose signatures of the proposal verify; refuses if the service names others.
const signersOf = async (proposal, bytes, judges) => {
  const signatures = proposal.signatures.map((entry) => ({ admin: entry.admin, signature: fromHex(entry.signature) }));
  const names = await signers(bytes, signatures, judges.admins);
  if (JSON.stringify([...names].sort()) !== JSON.stringify([...proposal.signed_by].sort())) throw new Error("others");
  return names;
};

// The admins and the threshold by which signatures are judged: those that the reader pins, else those of the service.
export const judgesOf = (pins, overview) => {
  if (pins === null) return { admins: overview.admins, threshold: overview.threshold, agree: true };
  const admins = Object.entries(pins.keys).map(([name, key]) => ({ name, public_key: key }));
  const keyed = (list) => JSON.stringify(list.map((admin) => [admin.name, admin.public_key]).sort());
  const agree = pins.threshold === overview.threshold && keyed(admins) === keyed(overview.admins);
  return { admins, threshold: pins.threshold, agree };
};

// Returns `{bytes, terms, base, hash, baseHash, entries, checks: [[name, passed]], objections, judges, signedBy, sound}`.
// Terms that cannot be decoded are undefined, and nothing is sound then. `id` is what was asked for, `pins` the reader's.
export const examine = async (id, proposal, manifest, overview, pins) => {
  const judges = judgesOf(pins, overview);
  const bytes = await tried(() => fromBase64(proposal.terms));
  const baseBytes = await tried(() => fromBase64(proposal.base));
  const terms = await tried(() => decode(Terms, bytes));
  const base = await tried(() => decode(Terms, baseBytes));
  const decoded = terms !== undefined && base !== undefined;
  const hash = bytes && hex(await sha256(bytes));
  const baseHash = baseBytes && hex(await sha256(baseBytes));
  const entries = decoded ? difference(base, terms) : [];
  const found = decoded ? objections(base, terms, baseHash) : [];
  const signedBy = await tried(() => signersOf(proposal, bytes, judges));
  const isThis = hash?.slice(0, ID_DIGITS) === id && proposal.id === id && String(terms?.serial) === String(proposal.serial);
  const checks = [
    ["decoded", decoded],
    ["id", isThis],
    ["base", baseHash !== undefined && baseHash === proposal.base_hash],
    ["base-signed", (await tried(() => isSigned(proposal.base_signed, baseHash, judges))) === true],
    ["previous", decoded && hex(terms.previous) === baseHash],
    ["signatures", signedBy !== undefined],
    ["told", decoded && isTold(entries, proposal.difference)],
  ];
  if (proposal.state === "open") {
    const inForce = manifest.hash === baseHash && (await tried(() => isSigned(manifest.signed, baseHash, judges))) === true;
    checks.push(["in-force", inForce], ["succession", decoded && found.length === 0]);
  }
  if (pins !== null) checks.push(["admins", judges.agree]);
  const sound = checks.every(([, passed]) => passed);
  const shown = proposal.state === "open" ? found : [];
  return { bytes, terms, base, hash, baseHash, entries, checks, objections: shown, judges, signedBy: signedBy ?? [], sound };
};
