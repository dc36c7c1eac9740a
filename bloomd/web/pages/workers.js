// The fleet: who works, how much more it could take, and how one more machine comes to it.
//
// The list is asked for as a whole, up to 1000 workers, and filtered here. With worker=ID in the address it is one of them.

import { api } from "../api.js";
import { h } from "../dom.js";
import { time } from "../format.js";
import { number, t } from "../i18n.js";
import { change } from "../router.js";
import { button, facts, field, link, pager, select, table } from "../ui.js";
import { install, register } from "./enrol.js";
import { addresses, holds, labels, load, names, program, standing } from "./fleet.js";
import { step } from "./hold.js";
import { loadWorker, renderWorker, worthALook } from "./worker.js";

// Rows are drawn so many at a time.
const SHOWN = 100;

// Of so large a fleet some task begins or ends at every moment: then its leases are counted now and then.
const LARGE = 200;

const STATUSES = ["online", "offline", "syncing", "error", "unknown"];
const HELD_BACK = ["cordoned", "draining"];
const VIEWS = ["cards", "table"];

export const workers = {
	title: () => t("workers.title"),
	types: ["worker", "task", "lease"],
	every: 10_000, // heartbeats are no events

	onEvent(type, entry, { params, state }) {
		if (type === "reset") return false;
		if (params.has("worker")) return !worthALook(type, entry, params.get("worker"));
		if (type === "worker") return false;
		// Progress has no action, and a task that is only queued holds no worker.
		return state.isLarge || !entry.action || entry.action === "task.created";
	},

	async load(context) {
		const { params, state, signal } = context;
		const isOne = params.has("worker");
		let data;
		if (isOne) data = await loadWorker(context);
		else {
			const { rows, next } = await api.list("/runtime/workers", { cursor: params.get("cursor") }, { signal });
			const { compare } = new Intl.Collator(undefined, { numeric: true });
			state.isLarge = rows.length > LARGE;
			data = { rows: rows.sort((one, other) => compare(one.id, other.id)), next };
		}
		const place = params.get("worker");
		// Who has followed a link is at the top of what it leads to, with the keyboard too.
		if (state.place !== undefined && state.place !== place) setTimeout(arrive);
		state.place = place;
		return { ...data, isOne };
	},

	render(data, context) {
		const [key, part] = data.isOne ? [`worker-${data.id}`, renderWorker] : ["fleet", fleet];
		return h("div", { key }, part(data, context));
	},
};

function arrive() {
	document.getElementById("main").focus({ preventScroll: true });
	scrollTo(0, 0);
}

function fleet({ rows, next }, context) {
	const { params, state, redraw } = context;
	const found = rows.filter((worker) => fits(worker, params));
	const shown = found.slice(0, (state.shown ??= SHOWN));
	const of = shown.length < found.length ? found : rows;
	const more = () => {
		state.shown += SHOWN;
		redraw();
	};
	return [
		h(
			"header",
			{ class: "bar" },
			h("h1", {}, t("workers.title")),
			button(t("workers.register"), register),
			button(t("workers.install"), () => install(context), { kind: "primary" }),
		),
		rows.length === 0 ? h("p", { class: "empty", key: "none" }, t("workers.none")) : filters(rows, context),
		rows.length > 0 && found.length === 0 && h("p", { class: "empty", key: "nothing" }, t("app.nothing")),
		found.length > 0 && (viewOf(params) === "cards" ? cards(shown, context) : list(shown, context)),
		h("p", { role: "status", key: "count" }, shown.length < of.length && t("workers.shown", { n: shown.length, all: of.length })),
		found.length > shown.length && button(t("workers.more"), more, { key: "more" }),
		(next || params.get("cursor")) && h("p", { key: "part" }, t("workers.part", { n: rows.length })),
		pager("workers", params, next),
	];
}

// --- Filters

function viewOf(params) {
	return VIEWS.includes(params.get("view")) ? params.get("view") : "cards";
}

function isIn(worker, status) {
	return HELD_BACK.includes(status) ? worker[status] : worker.status === status;
}

function fits(worker, params) {
	const status = params.get("status");
	const label = params.get("label");
	const text = (params.get("text") ?? "").trim().toLowerCase();
	return (
		(!status || isIn(worker, status)) &&
		(!label || names(worker).includes(label)) &&
		(!text || [worker.id, worker.url, ...worker.ip_addrs, worker.os_info, worker.agent_version].join("\n").toLowerCase().includes(text))
	);
}

function filters(rows, { params, state, redraw }) {
	const counted = (name, n) => `${name} (${number(n)})`;
	const set = (name) => (value) => {
		state.shown = SHOWN;
		// What is known is enough to show it at once.
		addEventListener("hashchange", redraw, { once: true });
		change({ [name]: value, cursor: params.get("cursor") });
	};
	const byLabel = new Map([[params.get("label"), 0]]);
	for (const worker of rows) for (const label of names(worker)) byLabel.set(label, (byLabel.get(label) ?? 0) + 1);
	byLabel.delete(null);
	byLabel.delete("");
	const statuses = [...STATUSES, ...HELD_BACK]
		.map((status) => [status, rows.filter((worker) => isIn(worker, status)).length])
		.filter(([status, n]) => n > 0 || status === params.get("status"));
	const every = ["", counted(t("app.all"), rows.length)];
	const choice = (id, title, options) => field(title, select([every, ...options], params.get(id), set(id), { id }));
	const write = ({ currentTarget }) => set("text")(currentTarget.value);
	return h(
		"div",
		{ class: "filters even", role: "search", key: "filters" },
		choice("status", t("tasks.status"), statuses.map(([status, n]) => [status, counted(t(`app.state.${status}`), n)])),
		choice("label", t("tasks.labels"), [...byLabel].sort().map(([label, n]) => [label, counted(label, n)])),
		field(
			t("workers.text"),
			h("input", { id: "text", type: "search", value: params.get("text") ?? "", onchange: write }),
		),
		h(
			"nav",
			{ class: "switch", "aria-label": t("workers.view") },
			VIEWS.map((view) => {
				const current = view === viewOf(params) ? "true" : null;
				return link(t(`workers.views.${view}`), "workers", { ...Object.fromEntries(params), view }, { "aria-current": current });
			}),
		),
	);
}

// --- The two views

function cards(rows, context) {
	return h(
		"div",
		{ class: "grid", key: "cards" },
		rows.map((worker) =>
			h(
				"article",
				{ class: "card worker", key: worker.id },
				h("h2", {}, toWorker(worker, context)),
				h("p", { class: "buttons" }, standing(worker)),
				load(worker),
				facts([
					[t("tasks.heartbeat"), time(worker.last_heartbeat, t("keys.never"))],
					[t("workers.program"), program(worker)],
					[t("workers.address"), addresses(worker)],
					[t("tasks.labels"), labels(worker)],
				]),
				h("div", { class: "actions" }, holding(worker, context, "")),
			),
		),
	);
}

function list(rows, context) {
	return table({
		caption: t("workers.title"),
		rows,
		columns: [
			{ title: t("keys.name"), cell: (worker) => toWorker(worker, context) },
			{ title: t("tasks.status"), cell: (worker) => h("span", { class: "buttons" }, standing(worker)) },
			{ title: t("workers.leases"), cell: load },
			{ title: t("tasks.heartbeat"), cell: (worker) => time(worker.last_heartbeat, t("keys.never")) },
			{ title: t("workers.program"), cell: (worker) => program(worker) ?? "–" },
			{ title: t("tasks.labels"), cell: (worker) => labels(worker) ?? "–" },
			{ title: t("workers.address"), cell: (worker) => addresses(worker) ?? "–" },
			{ title: t("app.actions"), cell: (worker) => h("div", { class: "one-line" }, holding(worker, context, "plain")) },
		],
	});
}

function toWorker({ id }, { params }) {
	return link(id, "workers", { ...Object.fromEntries(params), worker: id });
}

function holding(worker, { reload }, kind) {
	return holds(worker).map((verb) => {
		const label = t(`workers.${verb}`);
		return button(label, () => step(verb, worker, reload), { kind, name: `${label}: ${worker.id}`, key: verb });
	});
}
