// How everything is, at a glance: the verdict, the queue and who works on it, the probes, the task tree, the latest of the trail.

import { api, settle } from "../api.js";
import { sparkline } from "../chart.js";
import { h } from "../dom.js";
import { bytes, duration, milliseconds, now, time } from "../format.js";
import { known, number, t } from "../i18n.js";
import { badge, card, copyButton, facts, link, problemBox, table } from "../ui.js";
import { columns } from "./audit.js";
import { charts, retell } from "./history.js";
import { services } from "./services.js";
import { damage, storage } from "./storage.js";

const STATES = ["queued", "leased", "running", "completed", "failed", "dead", "cancelled"];
const PROBES = { postgresql: "PostgreSQL", minio: "MinIO", membridge: "Membridge" };

export const overview = {
	title: () => t("overview.title"),
	types: ["task", "lease", "worker", "probe", "service", "audit"],
	// The probes' curves grow without an event.
	every: 15_000,

	async load({ state, signal }) {
		const [status, parts] = await Promise.all([
			api.get("/runtime/status", {}, { signal }),
			settle({ audit: api.get("/runtime/audit", { limit: 10 }, { signal }), history: retell(state, signal) }),
		]);
		return { status, ...parts, at: now() };
	},

	render: ({ status, audit, history, at }, { reload }) => [
		h("header", { class: "bar" }, h("h1", {}, t("overview.title")), h("small", {}, `${status.process.node} · bloomd ${status.process.version}`)),
		verdict(status),
		damage(status),
		h("div", { class: "grid block" }, queue(status, at), workers(status.workers), daemon(status, at)),
		charts(history, at, reload),
		h("h2", { class: "over" }, t("overview.probes")),
		h("div", { class: "grid block" }, status.probes.map(probe)),
		h("section", { key: "services" }, h("h2", { class: "over" }, t("overview.services")), services(status.services, at, reload)),
		h(
			"section",
			{ key: "audit" },
			h("header", { class: "bar over" }, h("h2", {}, t("overview.audit")), link(t("audit.title"), "audit")),
			audit instanceof Error ? problemBox(audit, reload) : table({ caption: t("overview.audit"), rows: audit, columns: columns() }),
		),
	],
};

function verdict({ verdict: word, reasons, next, notices }) {
	return h(
		"section",
		{ class: `verdict ${word}`, "aria-label": t("overview.verdict") },
		h("p", { role: "status" }, badge(word), " ", h("strong", reasons.length ? { lang: "en" } : {}, reasons.join("; ") || t("overview.well"))),
		next && h("p", { key: "next" }, t("overview.next"), " ", h("code", {}, next), " ", copyButton(next)),
		notices.length > 0 && h("ul", { key: "notices" }, notices.map((notice) => h("li", { lang: "en" }, notice))),
	);
}

function unknown() {
	return h("p", { class: "wrong", key: "unknown" }, t("overview.unknown"));
}

function queue({ queue: now }, at) {
	if (!now) return card(t("overview.queue"), unknown());
	const oldest = now.oldest_queued_seconds;
	const count = (state) => [
		link(badge(state), "tasks", { status: state }, { class: "quiet" }),
		" ",
		h("strong", {}, number(now.by_status[state] ?? 0)),
	];
	return card(
		[t("overview.queue"), now.pause && [" ", badge("paused")]],
		now.pause && h("p", { key: "pause" }, pause(now.pause), " ", link(t("tasks.title"), "tasks")),
		h("ul", { class: "counts" }, STATES.map((state) => h("li", { key: state }, count(state)))),
		facts([
			[t("overview.oldest"), oldest === null ? t("overview.noneWaits") : time(Math.round(at / 1000 - oldest) * 1000)],
			[t("workers.leases"), number(now.active_leases)],
			[t("overview.rescued"), number(now.rescued_last_hour)],
		]),
	);
}

function pause({ until, reason }) {
	const how = until === null ? t("overview.pausedOpen") : [t("overview.pausedUntil"), " ", time(until * 1000)];
	return [how, reason && `: ${reason}`, ". "];
}

function workers(fleet) {
	if (!fleet) return card(t("workers.title"), unknown());
	const { online, total, busy, capacity, free, cordoned, draining } = fleet;
	return card(
		t("workers.title"),
		h("p", { class: "big" }, link(t("overview.online", { online, total }), "workers")),
		h("meter", { min: 0, max: Math.max(1, capacity), value: Math.min(busy, capacity), "aria-label": t("overview.busy") }),
		facts([
			[t("overview.busy"), t("overview.of", { part: busy, whole: capacity })],
			[t("overview.free"), h("strong", {}, number(free))],
			[t("app.state.cordoned"), cordoned > 0 && number(cordoned)],
			[t("app.state.draining"), draining > 0 && number(draining)],
		]),
	);
}

function daemon({ process, leader, sync, objects, backup }, at) {
	return card(
		t("overview.daemon"),
		facts([
			[t("overview.started"), time(Math.round(at / 1000 - process.uptime_seconds) * 1000)],
			[t("overview.leader"), leader ? [leader.here ? t("overview.here") : leader.node, ", ", time(leader.since * 1000)] : t("overview.noLeader")],
			[t("overview.sync"), sync.configured ? synced(sync) : t("overview.notConfigured")],
			...storage({ objects, backup }),
			[t("overview.memory"), bytes(process.rss_bytes)],
			[t("overview.lag"), `${milliseconds(process.loop_lag_ms)} / ${milliseconds(process.loop_lag_worst_ms)}`],
		]),
	);
}

function synced({ error, last_success: success, agents }) {
	const when = success === null ? t("keys.never") : time(success * 1000);
	return [error ? h("span", { class: "wrong" }, error, " ") : agents !== null && `${t("overview.agents", { n: agents })}, `, when];
}

function probe({ name, state, history, p50_ms: p50, p99_ms: p99, last_ok: lastOk, failures, error }) {
	return h(
		"section",
		{ class: "card", key: name },
		h("h3", { class: "bar" }, h("span", {}, PROBES[name] ?? name), badge(state)),
		history.length > 1 && sparkline({ points: history.map(({ at, ms }) => [at, ms]), words: told(history, p50) }),
		error && h("p", { class: "wrong", key: "error" }, error),
		state === "disabled"
			? h("p", { class: "empty" }, t("overview.notConfigured"))
			: facts([
					[t("overview.latency"), p50 !== null && `${milliseconds(p50)} / ${milliseconds(p99)}`],
					[t("overview.lastOk"), lastOk === null ? t("keys.never") : time(lastOk * 1000)],
					[t("overview.failures"), failures > 0 && number(failures)],
				]),
	);
}

function told(history, p50) {
	const failed = history.filter(({ ms }) => ms === null).length;
	const span = duration(history.at(-1).at - history[0].at);
	return t("overview.curve", { n: history.length, span, median: milliseconds(p50, "?"), failed });
}
