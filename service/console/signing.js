// Signs as protocol/signing.py does, with a key that never leaves this page: it is read from a file, used once, and
// overwritten. What goes out is the signature.

import { fromHex, join } from "./encoding.js";

const CONTEXT = new TextEncoder().encode("cover-lookup/v1");
const PURPOSE = new TextEncoder().encode("manifest");
const SEED_BYTES = 32;
const PKCS8_OF_A_SEED = fromHex("302e020100300506032b657004220420"); // RFC 8410, section 7: what stands before the seed
const MOST_BYTES = 1024;

export class KeyFileError extends Error {}

const signedBytes = (terms) => join(CONTEXT, PURPOSE, terms);

// The 64 hexadecimal digits of an admin's key file as PKCS #8. No text is made of them: text cannot be overwritten.
const pkcs8Of = (file) => {
  const packed = new Uint8Array(PKCS8_OF_A_SEED.length + SEED_BYTES);
  packed.set(PKCS8_OF_A_SEED);
  const isBlank = (byte) => byte === 9 || byte === 10 || byte === 13 || byte === 32;
  let first = 0;
  let end = file.length;
  while (first < end && isBlank(file[first])) first += 1;
  while (end > first && isBlank(file[end - 1])) end -= 1;
  let whole = end - first === 2 * SEED_BYTES;
  for (let index = 0; whole && index < 2 * SEED_BYTES; index += 1) {
    const digit = Number.parseInt(String.fromCharCode(file[first + index]), 16);
    if (Number.isNaN(digit)) whole = false;
    else packed[PKCS8_OF_A_SEED.length + (index >> 1)] |= index % 2 ? digit : digit << 4;
  }
  if (whole) return packed;
  packed.fill(0);
  throw new KeyFileError("not-a-key");
};

// Whether this browser knows Ed25519; Chromium and its kin do from version 137 on.
export const supported = async () => {
  try {
    await crypto.subtle.importKey("raw", new Uint8Array(SEED_BYTES), "Ed25519", false, ["verify"]);
    return true;
  } catch (error) {
    return error.name === "DataError"; // the name is known, and this point refused
  }
};

// Whether an admin's public key (hex) verifies a signature of the encoded terms.
export const verifies = async (publicKey, signature, terms) => {
  try {
    const key = await crypto.subtle.importKey("raw", fromHex(publicKey), "Ed25519", false, ["verify"]);
    return await crypto.subtle.verify("Ed25519", key, signature, signedBytes(terms));
  } catch {
    return false;
  }
};

// The signature, 64 bytes, of the encoded terms by the key in a file; refuses one that is not the admin's. `admins` are
// those of the alliance, so that the key of another is told by its name.
export const sign = async (file, admin, admins, terms) => {
  if (file.size > MOST_BYTES) throw new KeyFileError("not-a-key");
  const read = new Uint8Array(await file.arrayBuffer());
  let packed = new Uint8Array();
  try {
    packed = pkcs8Of(read);
    const key = await crypto.subtle.importKey("pkcs8", packed, "Ed25519", false, ["sign"]);
    const signature = new Uint8Array(await crypto.subtle.sign("Ed25519", key, signedBytes(terms)));
    if (await verifies(admin.public_key, signature, terms)) return signature;
    for (const other of admins) {
      if (await verifies(other.public_key, signature, terms)) throw new KeyFileError("key-of-another", { cause: other.name });
    }
    throw new KeyFileError("key-of-nobody");
  } finally {
    read.fill(0);
    packed.fill(0);
  }
};

// The names of those admins who have signed the encoded terms, each key once; a signature that does not verify is an
// error. `signatures` are `{admin, signature}`.
export const signers = async (terms, signatures, admins) => {
  const names = new Map();
  for (const entry of signatures) {
    const admin = admins.find((one) => one.name === entry.admin);
    if (admin === undefined) continue;
    if (!(await verifies(admin.public_key, entry.signature, terms))) throw new Error("a signature does not verify");
    if (!names.has(admin.public_key)) names.set(admin.public_key, admin.name);
  }
  return [...names.values()];
};
