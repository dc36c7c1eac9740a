// The tasks: found by what they are, one or many at once cancelled or queued again. With task=ID in the address it is one.

import { Problem, api, settle } from "../api.js";
import { h } from "../dom.js";
import { duration, now, time } from "../format.js";
import { number, t } from "../i18n.js";
import { change, go, here, href } from "../router.js";
import { act, badge, button, confirm, field, link, pager, problemBox, table, toast } from "../ui.js";
import { create, pauseBanner, pauseButton } from "./queue.js";
import { loadTask, renderTask } from "./task.js";

const STATUSES = ["queued", "leased", "running", "completed", "failed", "dead", "cancelled"];
const FILTERS = ["agent_slug", "context_id", "worker_id"];

// To which tasks what can be done; to all others it is refused.
const CAN = { requeue: ["queued", "failed", "dead", "cancelled"], cancel: ["queued", "leased", "running"] };

// Of those selected, so many are asked for at once.
const AT_ONCE = 4;

export const tasks = {
	title: () => t("tasks.title"),
	types: ["task", "lease", "audit"],

	onEvent(type, entry, { params, state, redraw }) {
		if (type === "reset") return false;
		// What is done to many tasks at once is told as one entry, about none of them.
		if (type === "audit") return !["queue", "task"].includes(entry.entity_type);
		if (entry.action === "task.progress") {
			const task = params.has("task") ? state.task : state.rows?.find(({ id }) => id === entry.entity_id);
			if (task?.id === entry.entity_id) Object.assign(task, { progress: entry.progress, progress_at: entry.timestamp });
			redraw();
			return true;
		}
		return params.has("task") && type === "task" && entry.entity_id !== params.get("task");
	},

	load: (context) => (context.params.has("task") ? loadTask(context) : loadList(context)),

	render: (data, context) =>
		data.task
			? h("div", { key: `task-${data.task.id}` }, renderTask(data, context))
			: h("div", { key: "list" }, list(data, context)),
};

async function loadList({ params, state, signal }) {
	const filter = filterOf(params);
	// What was selected is what is seen: with another filter it would be something else.
	const place = JSON.stringify(filter);
	if (state.place !== place) Object.assign(state, { place, selected: new Set() });
	const { page, ...rest } = await settle({
		page: api.list("/runtime/llm-tasks", { ...filter, cursor: params.get("cursor") }, { signal }),
		stats: api.get("/runtime/stats"),
		queue: api.get("/runtime/queue"),
		agents: (state.agents ??= api.get("/runtime/llm-tasks/agents")),
	});
	if (rest.agents instanceof Problem) state.agents = undefined;
	if (page instanceof Problem) throw page;
	state.rows = page.rows;
	return { ...page, ...rest };
}

function filterOf(params) {
	const known = ["status", ...FILTERS].map((name) => [name, params.get(name)]);
	return Object.fromEntries(known.filter(([, value]) => value));
}

function list({ rows, next, stats, queue, agents }, context) {
	const { params, state, reload } = context;
	return [
		h(
			"header",
			{ class: "bar", key: "bar" },
			h("h1", {}, t("tasks.title")),
			!(queue instanceof Problem) && pauseButton(queue, reload),
			button(t("tasks.create"), () => create(), { kind: "primary" }),
		),
		queue instanceof Problem ? problemBox(queue) : pauseBanner(queue),
		stats instanceof Problem && problemBox(stats),
		statuses(params, stats instanceof Problem || FILTERS.some((name) => params.get(name)) ? {} : stats.tasks),
		filters(params, agents instanceof Problem ? [] : agents),
		bulk(context),
		table({
			caption: t("tasks.title"),
			rows,
			empty: t("tasks.none"),
			columns: [
				{ title: selectAll(rows, context), cell: (task) => selectOne(task, context) },
				{ title: t("tasks.prompt"), cell: (task) => [h("a", { class: "cut", href: address(params, task.id) }, task.prompt.slice(0, 200)), h("small", { class: "mono" }, task.id)] },
				{ title: t("tasks.status"), cell: (task) => [badge(task.status), progress(task)] },
				{ title: t("tasks.agent"), cell: (task) => task.agent_slug || "–" },
				{ title: t("tasks.worker"), cell: (task) => (task.worker_id ? link(task.worker_id, "workers", { worker: task.worker_id }) : "–") },
				{ title: t("tasks.attempts"), number: true, cell: (task) => `${number(task.attempts)} / ${number(task.max_attempts)}` },
				{ title: t("tasks.age"), cell: (task) => time(task.created_at) },
				{ title: t("tasks.took"), number: true, cell: (task) => took(task) },
			],
		}),
		pager("tasks", params, next),
	];
}

function address(params, id) {
	const one = new URLSearchParams(params);
	one.set("task", id);
	return href("tasks", one);
}

// How long its latest attempt took, or takes.
export function took({ started_at: from, ended_at: to }) {
	return from === null ? "–" : duration(Math.max(0, (to ?? now()) - from) / 1000);
}

// How far a worker has come, in its own words; a number is a percentage.
export function progress({ status, progress: said }) {
	if (status !== "running" || said === null || said === undefined) return null;
	return h("small", { class: "progress" }, typeof said === "number" ? `${number(said)} %` : said);
}

// --- What is looked for

function statuses(params, { total, by_status: by = {} }) {
	const counted = (name, n) => [name, " ", n !== undefined && h("span", { class: "count" }, number(n))];
	const one = (status, label, n) => {
		const there = new URLSearchParams(params);
		there.delete("cursor");
		there.set("status", status);
		return h("a", { href: href("tasks", there), "aria-current": (params.get("status") ?? "") === status ? "true" : null }, counted(label, n));
	};
	return h(
		"nav",
		{ class: "switch wrap", key: "statuses", "aria-label": t("tasks.status") },
		one("", t("app.all"), total),
		STATUSES.map((status) => one(status, t(`app.state.${status}`), total === undefined ? undefined : (by[status] ?? 0))),
	);
}

function filters(params, agents) {
	const text = (name, attributes) =>
		field(
			t(`tasks.${name}`),
			h("input", { id: `filter-${name}`, type: "search", value: params.get(name) ?? "", autocomplete: "off", onchange: ({ currentTarget }) => change({ [name]: currentTarget.value.trim() }), ...attributes }),
		);
	const search = (event) => {
		event.preventDefault();
		const id = new FormData(event.currentTarget).get("id").trim();
		if (id) go("tasks", { task: id });
	};
	return h(
		"div",
		{ class: "filters", key: "filters" },
		text("agent_slug", { list: "agents" }),
		h("datalist", { id: "agents" }, agents.map(({ agent_slug: slug }) => h("option", { value: slug }))),
		text("context_id"),
		text("worker_id"),
		h("form", { onsubmit: search }, field(t("tasks.byId"), h("input", { id: "filter-id", name: "id", type: "search", autocomplete: "off", spellcheck: "false" }))),
	);
}

// --- Many at once

function selectOne({ id }, { state, redraw }) {
	const onchange = ({ currentTarget }) => {
		state.selected[currentTarget.checked ? "add" : "delete"](id);
		redraw();
	};
	return h("input", { type: "checkbox", checked: state.selected.has(id), "aria-label": t("tasks.select", { id }), onchange });
}

function selectAll(rows, { state, redraw }) {
	const onchange = ({ currentTarget }) => {
		for (const { id } of rows) state.selected[currentTarget.checked ? "add" : "delete"](id);
		redraw();
	};
	const all = rows.length > 0 && rows.every(({ id }) => state.selected.has(id));
	return h("input", { type: "checkbox", checked: all, "aria-label": t("tasks.selectAll"), onchange });
}

function bulk(context) {
	const n = context.state.selected.size;
	const status = context.params.get("status");
	const verbs = Object.keys(CAN).filter((verb) => !status || CAN[verb].includes(status));
	const buttons = (act) => verbs.map((verb) => button(t(`tasks.${verb}`), () => act(verb, context), { name: `${t(`tasks.${verb}`)}: ${t(act === toSelected ? "tasks.selected" : "tasks.matching", { n })}` }));
	return h(
		"div",
		{ class: "filters", key: "bulk" },
		n > 0 && h("div", { class: "buttons" }, h("strong", { role: "status" }, t("tasks.selected", { n })), buttons(toSelected)),
		verbs.length > 0 && h("div", { class: "buttons" }, t("tasks.matching"), buttons(toMatching)),
	);
}

async function toSelected(verb, { state, reload }) {
	const ids = [...state.selected];
	if (!(await confirm(t(`tasks.${verb}Title`, { n: ids.length }), t(`tasks.${verb}What`), { danger: verb === "cancel" }))) return;
	const refused = [];
	let done = 0;
	const next = async () => {
		for (let id = ids.pop(); id; id = ids.pop())
			try {
				await api.post(`/runtime/llm-tasks/${encodeURIComponent(id)}/${verb}`);
				done += 1;
				state.selected.delete(id);
			} catch (error) {
				if (!(error instanceof Problem)) throw error;
				refused.push(error);
			}
	};
	await Promise.all(Array.from({ length: AT_ONCE }, next));
	if (done) toast(t(`tasks.${verb}Done`, { n: done }));
	if (refused.length) toast(`${t("tasks.refused", { n: refused.length })} ${refused[0].message}`, { kind: "bad" });
	reload();
}

// The server counts first, and does it only after somebody has seen the number. What is created from now on is left alone.
async function toMatching(verb, { state, reload }) {
	// A field that is left by this very click has changed the address, and not yet what is shown.
	const filter = filterOf(here().params);
	const body = { filter: { ...filter, before: Math.max(Math.round(now()), (state.rows?.[0]?.created_at ?? 0) + 1) }, dry_run: true };
	const path = `/runtime/llm-tasks/${verb}`;
	let n;
	if (!(await act(async () => ({ matched: n } = await api.post(path, body))))) return;
	if (n === 0) return toast(t("tasks.noMatch"), { kind: "bad" });
	const which = Object.entries(filter).map(([name, value]) => h("li", {}, `${t(`tasks.${name}`)}: `, name === "status" ? badge(value) : value));
	const what = [t(`tasks.${verb}What`), h("ul", {}, which)];
	if (!(await confirm(t(`tasks.${verb}Title`, { n }), what, { danger: verb === "cancel" }))) return;
	await act(() => api.post(path, { ...body, dry_run: false }, { timeout: 600_000 }), ({ changed }) => t(`tasks.${verb}Done`, { n: changed }));
	reload();
}
