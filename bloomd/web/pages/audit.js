// The audit trail: who has done what, to what. What happens comes in on top by the events; the API is only asked for pages.
//
//   following ◀─▶ held: somebody has scrolled down and reads there. What comes then is only counted.

import { api } from "../api.js";
import { h } from "../dom.js";
import { time } from "../format.js";
import { known, t } from "../i18n.js";
import { change } from "../router.js";
import { button, field, link, pager, table } from "../ui.js";

const FILTERS = ["action", "entity_type", "entity_id", "actor", "since", "until"];

// Between two looks at what came, however much it is.
const DRAW_MS = 250;

// With so many entries the page begins anew, but not more often than this.
const MOST = 400;
const ANEW_MS = 2000;

// Who has scrolled so far down is reading there.
const AWAY_PX = 250;

export const audit = {
	title: () => t("audit.title"),
	types: ["task", "lease", "worker", "audit"],

	async load(context) {
		const { params, state, signal } = context;
		const place = params.toString();
		const stays = state.place === place;
		const arrived = (state.arrived = []);
		const { rows, next } = await api.list("/runtime/audit", { ...filters(params), cursor: params.get("cursor") }, { signal });
		if (!stays) Object.assign(state, { place, held: new Set() });
		if (stays && !isFollowing()) {
			const shown = new Set(state.rows.map(({ id }) => id));
			for (const { id } of rows) if (!shown.has(id)) state.held.add(id);
		} else Object.assign(state, { rows: merged(arrived, rows), next, held: new Set(), anewAt: Date.now() });
		watchScrolling(context);
		return state;
	},

	// A change of the trail is no reason to ask for it again.
	onEvent(type, entry, context) {
		const { params, state } = context;
		if (type === "reset" || !state.rows) return false;
		if (!entry.id || !entry.timestamp || isFixed(params) || !fits(entry, params)) return true;
		state.arrived.push(entry);
		if (isFollowing()) state.rows = merged([entry], state.rows);
		else state.held.add(entry.id);
		state.drawing ??= setTimeout(() => {
			state.drawing = null;
			if (context.signal.aborted) return;
			if (state.rows.length > MOST && Date.now() - state.anewAt > ANEW_MS) context.reload();
			else context.redraw();
		}, DRAW_MS);
		return true;
	},

	render: ({ rows, next, held }, { params, state, reload }) => [
		h(
			"header",
			{ class: "bar" },
			h("h1", {}, t("audit.title")),
			["csv", "jsonl"].map((format) => h("a", { href: exported(params, format), download: "" }, t(`audit.export.${format}`))),
		),
		filterForm(params, rows),
		held.size > 0 && h("p", { class: "news", key: "news" }, newsButton(state, reload)),
		table({ caption: t("audit.title"), rows, empty: t(next ? "audit.noneHere" : "audit.none"), columns: columns() }),
		pager("audit", params, next),
	],
};

export function columns() {
	return [
		{ title: t("audit.when"), cell: (entry) => time(entry.timestamp) },
		{ title: t("audit.action"), cell: actionCell },
		{ title: t("audit.entity"), cell: entityCell },
		{ title: t("audit.actor"), cell: ({ actor }) => h("span", { class: "whole" }, only(actor, { actor }, actor)) },
		{ title: t("audit.detail"), cell: ({ detail }) => detailCell(detail ?? "") },
	];
}

// --- Following

// A later page of the list, or a time that is over: nothing new can come there.
function isFixed(params) {
	return params.has("cursor") || Number(params.get("until") || Infinity) <= Date.now();
}

function isFollowing() {
	return scrollY < AWAY_PX;
}

function newsButton(state, reload) {
	const show = () => {
		state.held = new Set();
		scrollTo(0, 0);
		return reload();
	};
	return button(t("audit.news", { n: state.held.size }), show, { kind: "primary" });
}

// Back at the top, what was held is shown.
function watchScrolling({ state, signal, reload }) {
	if (state.watched === signal) return;
	state.watched = signal;
	const scrolled = () => {
		if (state.held.size === 0 || !isFollowing()) return;
		state.held = new Set();
		reload();
	};
	addEventListener("scroll", scrolled, { signal, passive: true });
}

// Entries of both, each once, the newest first. An entry may be written again with another detail; `newer` has that.
function merged(newer, older) {
	const entries = new Map([...older, ...newer].map((entry) => [entry.id, entry]));
	return [...entries.values()].sort((a, b) => b.timestamp - a.timestamp || (a.id < b.id ? 1 : -1));
}

// --- Filters

function filters(params) {
	return Object.fromEntries(FILTERS.map((name) => [name, params.get(name)]).filter(([, value]) => value));
}

function fits(entry, params) {
	return Object.entries(filters(params)).every(([name, wanted]) => {
		if (name === "since") return entry.timestamp >= Number(wanted);
		if (name === "until") return entry.timestamp < Number(wanted);
		if (name === "action" && wanted.endsWith("*")) return entry.action.startsWith(wanted.slice(0, -1));
		return entry[name] === wanted;
	});
}

function exported(params, format) {
	return `/api/runtime/audit/export?${new URLSearchParams({ format, ...filters(params) })}`;
}

function filterForm(params, rows) {
	const text = (name, attributes) =>
		field(
			t(`audit.${name}`),
			h("input", {
				id: `audit-${name}`,
				value: params.get(name) ?? "",
				autocomplete: "off",
				spellcheck: "false",
				onchange: ({ currentTarget }) => change({ [name]: currentTarget.value.trim() }),
				...attributes,
			}),
		);
	const moment = (name) =>
		text(name, {
			type: "datetime-local",
			value: local(params.get(name)),
			onchange: ({ currentTarget: { value } }) => change({ [name]: value && new Date(value).getTime() }),
		});
	const actions = new Set(rows.flatMap(({ action }) => [action, `${action.split(".")[0]}.*`]));
	return h(
		"form",
		{ class: "filters even", role: "search", "aria-label": t("audit.title"), onsubmit: (event) => event.preventDefault() },
		text("action", { list: "audit-actions", placeholder: "task.*" }),
		h("datalist", { id: "audit-actions" }, [...actions].map((value) => h("option", { value }))),
		text("entity_id"),
		text("actor"),
		moment("since"),
		moment("until"),
		Object.keys(filters(params)).length > 0 && link(t("audit.clear"), "audit"),
	);
}

// A moment as a field for it wants it, in this browser's time.
function local(ms) {
	if (!ms || Number.isNaN(Number(ms))) return "";
	const at = new Date(Number(ms));
	return new Date(at - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}

// --- What an entry is about

// The page where a thing is looked at.
const PLACES = {
	task: (task) => ["tasks", { task }],
	worker: (worker) => ["workers", { worker }],
	agent: (worker) => ["workers", { worker }],
	project: (id) => ["membridge", /^[0-9a-f]{16}$/.test(id) ? { project: id } : { managed: id }],
	key: () => ["keys"],
	config: () => ["runtime"],
	queue: () => ["tasks"],
};

function typeName(type) {
	return known(`audit.type.${type}`, type);
}

// A link to the entries that have this.
function only(label, params, what) {
	return link(label, "audit", params, { class: "quiet", title: t("audit.only", { what }) });
}

function actionCell({ action }) {
	// What an agent or a project of Membridge is, its kind says.
	const word = action.slice(action.indexOf(".") + 1).replace(/^(agent|project)_/, "");
	const meaning = known(`audit.do.${word}`, known(`app.state.${word}`, ""));
	return h("div", { class: "whole" }, meaning, h("div", { class: "mono" }, only(action, { action }, action)));
}

function entityCell({ action, entity_type: type, entity_id: id }) {
	// What is done to many at once has a name of its own, which is none of theirs.
	const [page, params] = (!/^(tasks|retention)\./.test(action) && PLACES[type]?.(id)) || [];
	const trail = link(t("audit.trail"), "audit", { entity_id: id }, { title: t("audit.only", { what: id }) });
	const place = page ? link(id, page, params, { class: "quiet" }) : id;
	return h("div", {}, typeName(type), " ", trail, h("div", { class: id.length > 40 ? "mono" : "mono whole" }, place));
}

function detailCell(detail) {
	if (detail.length < 160) return detail;
	return h("details", {}, h("summary", {}, `${detail.slice(0, 120)} …`), detail);
}
