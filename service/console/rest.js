// Calls the service as an admin or auditor. The API key lives in this object alone.

const WAIT_MILLISECONDS = 30_000;

export class Refused extends Error {
  constructor(status, code, detail, hint) {
    super(code);
    Object.assign(this, { status, code, detail, hint });
  }
}

export class Service {
  #key;

  constructor(key) {
    this.#key = key;
  }

  get(path) {
    return this.#call("GET", path);
  }

  post(path, body = {}) {
    return this.#call("POST", path, JSON.stringify(body));
  }

  async #call(method, path, body) {
    const headers = { Authorization: `Bearer ${this.#key}`, Accept: "application/json" };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    let answer;
    try {
      response = await fetch(`/v1/admin/${path}`, {
        method, headers, body, cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
        signal: AbortSignal.timeout(WAIT_MILLISECONDS),
      });
      answer = await response.json();
    } catch (error) {
      // A write whose answer is lost may have been done: the page says so and never that it failed.
      throw new Refused(0, response === undefined || error.name === "TimeoutError" ? "no-answer" : "no-json", "", "");
    }
    if (response.ok) return answer;
    const { code, detail, hint } = answer ?? {};
    throw new Refused(response.status, code ?? `status-${response.status}`, detail ?? "", hint ?? "");
  }
}
