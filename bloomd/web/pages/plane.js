// What a Membridge control plane says, by the proxy. Another one than the built-in may say less, or say it otherwise:
// what it does not say is unknown here, and never zero.

import { Problem, api, settle } from "../api.js";
import { h } from "../dom.js";
import { time } from "../format.js";
import { number, t } from "../i18n.js";
import { badge } from "../ui.js";

// One that does not answer is tried again for long: so long the page waits for it, and shows the rest then.
const PATIENCE_MS = 1500;

// Whether there is one to ask, as its probe says.
async function isConfigured() {
	const { status } = await settle({ status: api.get("/runtime/status") });
	return status instanceof Problem || status.probes.find(({ name }) => name === "membridge")?.state !== "disabled";
}

// Ask for several things; what came of it is in state.said[name], at once or later: null where there is no Membridge, and
// a problem in place of what failed.
export async function asked({ state, signal, redraw }, name, ask) {
	state.said ??= {};
	state.asking ??= {};
	const asking = (state.asking[name] ??= isConfigured()
		.then((is) => (is ? ask() : null))
		.finally(() => delete state.asking[name]));
	const keep = (said) => {
		state.said[name] = said;
		if (!signal.aborted) redraw();
	};
	await Promise.race([asking.then(keep, () => {}), new Promise((resolve) => setTimeout(resolve, PATIENCE_MS))]);
}

// A list, which some wrap in an object.
export async function list(path, name, query) {
	const said = await api.get(`/membridge/${path}`, query);
	const rows = Array.isArray(said) ? said : said?.[name];
	if (!Array.isArray(rows)) throw new Problem(502, { detail: t("membridge.strange", { what: path }) });
	return rows.filter((row) => row && typeof row === "object");
}

export function isCanonical(id) {
	return /^[0-9a-f]{16}$/.test(id ?? "");
}

// Who leads a project, and its nodes: {leader, nodes}, or {problem}, or all of it when only who leads is not to be had.
export async function leadership(canonicalId) {
	const path = `projects/${canonicalId}`;
	const { leader } = await settle({ leader: api.get(`/membridge/${path}/leadership`) });
	const problem = leader instanceof Problem ? leader : null;
	const known = problem ? {} : (leader ?? {});
	const { nodes } = Array.isArray(known.nodes) ? known : await settle({ nodes: list(`${path}/nodes`, "nodes") });
	if (nodes instanceof Problem) return { problem: problem ?? nodes };
	const primary = known.preferred_primary ?? known.primary_node_id ?? nodes.find(({ role }) => role === "primary")?.node_id;
	return { problem, leader: { ...known, primary, epoch: known.epoch ?? known.term }, nodes };
}

// Whether all nodes of a project remember the same.
export function memory(nodes) {
	const known = nodes.map((node) => node.db_sha).filter(Boolean);
	if (new Set(known).size > 1) return "differs";
	return known.length && known.length === nodes.length ? "equal" : "unknown";
}

// --- Values that may be missing

export function unknown(value, shown = String) {
	return [null, undefined, ""].includes(value) ? h("span", { class: "empty" }, t("app.state.unknown")) : shown(value);
}

export const count = (value) => unknown(value, (known) => (typeof known === "number" ? number(known) : String(known)));

// A moment in epoch seconds, or as text.
export function moment(value) {
	const ms = typeof value === "number" ? value * 1000 : Date.parse(value);
	return unknown(Number.isFinite(ms) ? ms : null, time);
}

// The digest of a database, short, and whether it is that other one.
export function digest(sha, other) {
	const short = () => h("code", { title: sha }, String(sha).slice(0, 10));
	return h("div", { class: "buttons" }, sha && badge(sha === other ? "equal" : "differs"), unknown(sha, short));
}

export const column = (key, cell, number = false) => ({ title: t(key), cell, number });
