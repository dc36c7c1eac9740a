// What is shown of a worker in more than one place.

import { h } from "../dom.js";
import { number, t } from "../i18n.js";
import { badge } from "../ui.js";

// How many leases it may hold: as the server counts it where a worker says nothing sensible.
export function capacity({ capabilities: { max_concurrency: most } }) {
	return typeof most === "number" ? Math.min(32, Math.max(0, Math.trunc(most))) : 1;
}

// The names of its labels; a worker may have said anything.
export function names({ capabilities: { labels: said } }) {
	return Array.isArray(said) ? said.map(String) : [];
}

export function labels(worker) {
	const found = names(worker);
	return found.length ? h("ul", { class: "labels" }, found.map((name) => h("li", {}, name))) : null;
}

// Its status, whether it is held back, and whether that has emptied it.
export function standing(worker) {
	return [
		badge(worker.status),
		worker.cordoned && !worker.draining && badge("cordoned"),
		worker.draining && badge("draining", worker.active_leases === 0 ? t("workers.drained") : undefined),
		worker.capabilities.claude_cli !== true && badge("noClaude", t("workers.noClaude")),
	];
}

// What can be done to hold it back, or not any more.
export function holds({ cordoned, draining }) {
	return [cordoned || draining ? "uncordon" : "cordon", !draining && "drain"].filter(Boolean);
}

export function load(worker) {
	const most = capacity(worker);
	return h(
		"div",
		{ class: "load" },
		h("span", {}, `${number(worker.active_leases)} / ${number(most)}`),
		most > 0 && h("meter", { min: 0, max: most, value: Math.min(worker.active_leases, most), "aria-label": t("workers.leases") }),
	);
}

export function program({ agent_version: version, os_info: os }) {
	return version || os ? [version, version && os && h("br"), os && h("small", {}, os)] : null;
}

export function addresses({ url, ip_addrs: ips }) {
	return url || ips.length ? [url && h("span", { class: "mono address" }, url), ips.length > 0 && h("small", {}, ips.join(", "))] : null;
}

// Labels as a person writes them, between commas.
export function readLabels(text) {
	return String(text ?? "")
		.split(",")
		.map((each) => each.trim())
		.filter(Boolean);
}

export function path(id) {
	return `/runtime/workers/${encodeURIComponent(id)}`;
}
