// The public API of this server. What fails is a `Problem`, which says what, and what to do.

const BASE = "/api";
const OURS = "urn:problem-type:bloomd:";

// No answer within this is none: the daemon itself gives up on a database that is away much sooner.
const TIMEOUT_MS = 30_000;

export class Problem extends Error {
	constructor(status, body) {
		const said = body.detail ?? body.error ?? `HTTP ${status}`;
		super(typeof said === "string" ? said : JSON.stringify(said)); // Membridge may say it in its own way
		this.status = status;
		this.type = String(body.type ?? "").replace(OURS, "");
		this.errors = Array.isArray(body.errors) ? body.errors : [];
		this.body = body;
	}
}

// How far the server's clock is ahead of ours, in ms, as its answers say to the second.
export let clockOffset = 0;

// Called on each 401: whoever was signed in is so no longer.
let unauthorized = () => {};
export function onUnauthorized(handler) {
	unauthorized = handler;
}

// `take` is what to have of an answer that is no JSON.
async function request(method, path, { body, query, headers, signal, take, timeout = TIMEOUT_MS } = {}) {
	const search = new URLSearchParams(Object.entries(query ?? {}).filter(([, value]) => value !== "" && value != null));
	let response, text;
	try {
		response = await fetch(`${BASE}${path}${search.size ? `?${search}` : ""}`, {
			method,
			headers: { ...headers, ...(body !== undefined && { "content-type": "application/json" }) },
			body: body === undefined ? undefined : JSON.stringify(body),
			signal: AbortSignal.any([AbortSignal.timeout(timeout), ...(signal ? [signal] : [])]),
			cache: "no-store",
		});
		if (response.ok && take) return await take(response);
		text = await response.text();
	} catch (error) {
		if (signal?.aborted) throw error;
		throw new Problem(0, { type: error.name === "TimeoutError" ? "timeout" : "unreachable", detail: error.message });
	}
	const date = Date.parse(response.headers.get("date") ?? "");
	if (date) clockOffset = Math.abs(date - Date.now()) < 2000 ? 0 : date - Date.now();
	const said = parsed(text);
	if (response.ok && said !== undefined) return { said, response };
	// Membridge may refuse the key that this server has for it: that says nothing of who is signed in here.
	const theirs = response.status === 401 && path.startsWith("/membridge/") && !String(said?.type).startsWith(OURS);
	// What is no JSON is a proxy's own page, also where it calls it a success.
	const problem = new Problem(theirs || response.ok ? 502 : response.status, said ?? (text ? { detail: text.slice(0, 300) } : {}));
	if (problem.status === 401 && !(method === "POST" && path === "/runtime/session")) unauthorized(problem);
	throw problem;
}

// What the server said; undefined when it is no JSON.
function parsed(text) {
	try {
		return text ? JSON.parse(text) : null;
	} catch {
		return undefined;
	}
}

export const api = {
	get: async (path, query, options) => (await request("GET", path, { query, ...options })).said,
	post: async (path, body = {}, options) => (await request("POST", path, { body, ...options })).said,
	delete: async (path, query, options) => (await request("DELETE", path, { query, ...options })).said,

	// A page of a list: its rows, and the cursor of the next page, or null.
	list: async (path, query, options) => {
		const { said, response } = await request("GET", path, { query, ...options });
		const next = /<([^>]*)>;\s*rel="next"/.exec(response.headers.get("link") ?? "");
		return { rows: said, next: next && new URL(next[1], location.origin).searchParams.get("cursor") };
	},

	// The first bytes of a content, so many at the most.
	beginning: (path, bytes, options) =>
		request("GET", path, { headers: { range: `bytes=0-${bytes - 1}` }, take: (response) => response.arrayBuffer(), ...options }),

	// Whether a content can be had: nothing of it is taken.
	peek: (path, options) => request("GET", path, { take: (response) => response.body?.cancel(), ...options }),
};

// Of several requests, each by itself: its answer, or the problem that it had. Nothing fails for the others.
export async function settle(requests) {
	const entries = Object.entries(requests).map(async ([name, answer]) => {
		try {
			return [name, await answer];
		} catch (error) {
			if (!(error instanceof Problem) || error.status === 401) throw error;
			return [name, error];
		}
	});
	return Object.fromEntries(await Promise.all(entries));
}
