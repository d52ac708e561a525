// Reads the wire encoding of protocol/encoding.py, as strictly: what Python refuses is refused here, aside from points
// of the group, which are 32 bytes to this page. Numbers of more than 48 bits are BigInt, so that none is rounded.

export class Malformed extends Error {}

class Reader {
  #bytes;
  #at = 0;

  constructor(bytes) {
    this.#bytes = bytes;
  }

  take(count) {
    if (count > this.#bytes.length - this.#at) throw new Malformed("it ends early");
    const piece = this.#bytes.subarray(this.#at, this.#at + count);
    this.#at += count;
    return piece;
  }

  finish() {
    if (this.#at !== this.#bytes.length) throw new Malformed("bytes are left over");
  }
}

const EXACT_BITS = 48;

export const uint = (bits, { least = 0, most } = {}) => ({
  read(reader) {
    let value = 0n;
    for (const byte of reader.take(bits / 8)) value = (value << 8n) | BigInt(byte);
    if (value < BigInt(least) || (most !== undefined && value > BigInt(most))) {
      throw new Malformed("a number is out of range");
    }
    return bits > EXACT_BITS ? value : Number(value);
  },
});

export const fixed = (size) => ({ read: (reader) => reader.take(size) });

export const blob = (most) => {
  const count = uint(32, { most });
  return { read: (reader) => reader.take(count.read(reader)) };
};

// ignoreBOM keeps a byte order mark as the character that it is: otherwise two encodings would read alike.
const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

export const text = (most = 64) => {
  const count = uint(most < 256 ? 8 : 16, { least: 1, most });
  return {
    read(reader) {
      const bytes = reader.take(count.read(reader));
      try {
        return utf8.decode(bytes);
      } catch {
        throw new Malformed("a text is not UTF-8");
      }
    },
  };
};

export const seq = (codec, { least = 0, most }) => {
  const count = uint(32, { least, most });
  return { read: (reader) => Array.from({ length: count.read(reader) }, () => codec.read(reader)) };
};

// A message is `{read, fields}`: its prefix, which says name and version, and its fields in order.
export const message = async (name, version, fields) => {
  const digest = await sha256(new TextEncoder().encode(`cover-lookup/${name}/${version}`));
  const prefix = hex(digest.subarray(0, 8));
  const entries = Object.entries(fields);
  return {
    fields: Object.keys(fields),
    read(reader) {
      if (hex(reader.take(8)) !== prefix) throw new Malformed("it is another message or another version");
      return Object.freeze(Object.fromEntries(entries.map(([field, codec]) => [field, codec.read(reader)])));
    },
  };
};

export const decode = (kind, bytes) => {
  const reader = new Reader(bytes);
  const value = kind.read(reader);
  reader.finish();
  return value;
};

// --- bytes

export const sha256 = async (bytes) => new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));

export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

export const fromHex = (digits) => {
  if (typeof digits !== "string" || !/^([0-9a-f]{2})*$/.test(digits)) throw new Malformed("it is not hexadecimal");
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
};

export const fromBase64 = (letters) => {
  if (typeof letters !== "string") throw new Malformed("it is not base64");
  try {
    const plain = atob(letters);
    if (btoa(plain) !== letters) throw new Malformed("it is not base64");
    return Uint8Array.from(plain, (letter) => letter.charCodeAt(0));
  } catch {
    throw new Malformed("it is not base64");
  }
};

// As protocol/kdf.py `join`: each part with its length, 4 bytes, before it.
export const join = (...parts) => {
  const joined = new Uint8Array(parts.reduce((size, part) => size + 4 + part.length, 0));
  const view = new DataView(joined.buffer);
  let at = 0;
  for (const part of parts) {
    view.setUint32(at, part.length);
    joined.set(part, at + 4);
    at += 4 + part.length;
  }
  return joined;
};

export const sameBytes = (one, other) => hex(one) === hex(other);
