// Where this page comes from. `alliance console` serves another one of these, of the admin's own installation, with the
// admins' keys that its admin pins, {threshold, keys: {name: hexadecimal}}, or null.

export const own = false;
export const pins = null;
