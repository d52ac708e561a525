// How values are written: amounts in yuan with separators, days and times in UTC+8, and no character that hides.

const EPOCH_DAY = 719163; // 1970-01-01 as a proleptic Gregorian ordinal, as Python counts
const DAY_MILLISECONDS = 86_400_000;
const UTC_PLUS_8 = 8 * 3_600_000;
const LAST_SECONDS = 253_402_300_799; // 9999-12-31

// Control, format and other invisible characters, letters and signs that print as nothing, blanks other than the plain
// one, and that at the ends or side by side, are shown by their numbers: a name that reads as another is no help to those
// who sign. So are lone surrogates, private use, and marks that combine with others.
const HIDDEN = /[[\p{C}\p{Z}\p{M}\p{DI}\u2800\u{1d159}]--[ ]]+|^ +| +$| {2,}/gv;

export const visible = (value) =>
  String(value).replace(HIDDEN, (found) => Array.from(found, (one) => `\\u{${one.codePointAt(0).toString(16)}}`).join(""));

// An item of a list, in quotes: what a name has in it is told from what stands between names.
export const quoted = (value) => `'${visible(String(value).replace(/['\\]/g, "\\$&"))}'`;

const grouped = (digits) => digits.replace(/\B(?=(\d{3})+$)/g, ",");

export const count = (number) => (/^\d+$/.test(String(number)) ? grouped(String(number)) : visible(number));

// Fen, a number below 2^48, as yuan: 5000000000 is "50000000.00", as the service writes it.
export const yuanPlain = (fen) => `${Math.floor(fen / 100)}.${String(fen % 100).padStart(2, "0")}`;

const AMOUNT = /^(\d{1,13})\.(\d\d)$/;

// A text of yuan with two decimals, with separators; anything else is shown as it came.
export const yuan = (text) => {
  const parts = AMOUNT.exec(text);
  return parts === null ? visible(text) : `${grouped(parts[1])}.${parts[2]}`;
};

export const fenOf = (text) => {
  const parts = AMOUNT.exec(text);
  return parts === null ? null : Number(parts[1]) * 100 + Number(parts[2]);
};

const UNITS = {
  zh: [[100_000_000, "亿元"], [10_000, "万元"]],
  en: [[1_000_000_000, "billion yuan"], [1_000_000, "million yuan"], [1_000, "thousand yuan"]],
};

// An amount (fen) in words where it is a round one, so that a zero too many is noticed: 5,000 万元, 50 million yuan.
export const inWords = (fen, language) => {
  for (const [size, unit] of UNITS[language]) {
    const scaled = fen / (size * 100);
    if (scaled >= 1 && Number.isInteger(scaled * 100)) {
      const [whole, rest] = String(scaled).split(".");
      return `${grouped(whole)}${rest ? `.${rest}` : ""} ${unit}`;
    }
  }
  return "";
};

// A proleptic Gregorian ordinal as a day.
export const day = (ordinal) => new Date((ordinal - EPOCH_DAY) * DAY_MILLISECONDS).toISOString().slice(0, 10);

// The day in UTC+8 of Unix seconds, as an ordinal.
export const ordinalOf = (seconds) => EPOCH_DAY + Math.floor((Number(seconds) * 1000 + UTC_PLUS_8) / DAY_MILLISECONDS);

// Unix seconds as the service writes them, in UTC; those that no calendar has as they are.
export const rfc3339 = (seconds) =>
  Number(seconds) <= LAST_SECONDS ? `${new Date(Number(seconds) * 1000).toISOString().slice(0, 19)}Z` : `${seconds} s`;

// A time as RFC 3339 writes it, in UTC+8: to the minute, or to as many characters as are asked for.
export const time = (text, length = 16) => {
  const milliseconds = Date.parse(text);
  if (!(milliseconds >= 0 && milliseconds < LAST_SECONDS * 1000)) return visible(text);
  return new Date(milliseconds + UTC_PLUS_8).toISOString().slice(0, length).replace("T", " ");
};

// Hexadecimal digits in groups of eight, to be compared by eye or read out.
export const digits = (hex) => (visible(hex).match(/.{1,8}/gu) ?? []).join(" ");
