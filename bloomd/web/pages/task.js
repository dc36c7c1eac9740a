// One task: what it asks, how its attempts went, what came of it, and why it does not run.

import { Problem, api, settle } from "../api.js";
import { h, svg } from "../dom.js";
import { bytes, duration, exact, milliseconds, now, time } from "../format.js";
import { known, number, t } from "../i18n.js";
import { href } from "../router.js";
import { act, badge, button, card, confirm, copyButton, facts, link, problemBox, table, toast } from "../ui.js";
import { progress, took } from "./tasks.js";

const UNDER_WAY = ["queued", "leased", "running"];
const ENDED_BADLY = ["failed", "dead", "cancelled"];

// An agent answers when it is done, an hour later at most.
const DISPATCH_MS = 3_660_000;

// So much of an output is drawn; a browser is slow with megabytes, and nobody reads them here.
const DRAWN = 16_384;

// The rest of the page does not wait longer for the object store.
const CONTENT_MS = 5000;

const WIDTH = 600;
const ROW = 22;

export async function loadTask({ params, state, signal }) {
	const id = params.get("task");
	const path = `/runtime/llm-tasks/${encodeURIComponent(id)}`;
	const task = await api.get(path, {}, { signal });
	if (state.task?.id !== id) state.raw = false;
	state.task = task;
	return {
		task,
		...(await settle({
			why: task.status === "queued" ? api.get(`${path}/explain`, {}, { signal }) : null,
			artifacts: api.get("/runtime/artifacts", { task_id: id }, { signal }),
			content: beginning(task, state, signal),
		})),
	};
}

// Of an output that does not come with the task, since it was uploaded or the object store did not give it: how it begins,
// and whether that is all of it. Null where there is none. A content does not change: it is asked for once.
async function beginning({ result: said }, state, signal) {
	const id = said?.artifact_id;
	if (!id || said.output !== null || (said.status !== "success" && !said.output_truncated)) return null;
	if (state.content?.id === id) return state.content;
	const { size, url } = await api.get(`/runtime/artifacts/${encodeURIComponent(id)}`, {}, { signal });
	if (!size && !url) return null; // the worker had nothing to say
	const start = await api.beginning(contentOf(id), DRAWN, { signal, timeout: CONTENT_MS });
	return (state.content = { id, size, text: textOf(start), whole: start.byteLength === size });
}

// Bytes as text, without a part of a character at their end; null when they are something else.
function textOf(start) {
	try {
		const text = new TextDecoder("utf-8", { fatal: true }).decode(start, { stream: true });
		return text.includes("\0") ? null : text;
	} catch {
		return null;
	}
}

export function renderTask({ task, why, artifacts, content }, context) {
	return [
		head(task, context),
		why && card(t("tasks.why"), why instanceof Problem ? problemBox(why) : [reasons(why), why.reasons.some(({ code }) => code === "claimable") && button(t("tasks.dispatch"), () => dispatch(task, context))]),
		task.error_message && h("div", { class: "problem", key: "error" }, h("strong", {}, t("tasks.error")), h("pre", {}, task.error_message)),
		card(null, about(task)),
		task.result && card(t("tasks.result"), result(task, content, context)),
		task.history.length > 0 && card(t("tasks.attempts"), timeline(task.history), attempts(task.history)),
		card(t("tasks.prompt"), h("pre", { tabindex: "0" }, task.prompt), hints(task.context_hints)),
		card(t("tasks.artifacts"), artifacts instanceof Problem ? problemBox(artifacts) : files(artifacts)),
	];
}

function head(task, { params, reload }) {
	const back = new URLSearchParams(params);
	back.delete("task");
	const can = [
		UNDER_WAY.includes(task.status) && "cancel",
		(ENDED_BADLY.includes(task.status) || (task.status === "queued" && task.retry_at > now())) && "requeue",
	];
	return h(
		"header",
		{ class: "bar", key: "head" },
		h("h1", {}, h("a", { href: href("tasks", back) }, t("tasks.title")), " / ", h("span", { class: "mono" }, task.id)),
		badge(task.status),
		progress(task),
		can.filter(Boolean).map((verb) => button(t(`tasks.${verb}`), () => doTo(task, verb, reload), { key: verb, kind: verb === "cancel" ? "danger" : "" })),
	);
}

async function doTo(task, verb, reload) {
	if (!(await confirm(t(`tasks.${verb}Title`, { n: 1 }), t(`tasks.${verb}What`), { action: t(`tasks.${verb}`), danger: verb === "cancel" }))) return;
	await act(() => api.post(`/runtime/llm-tasks/${encodeURIComponent(task.id)}/${verb}`), t(`tasks.${verb}Done`, { n: 1 }));
	reload();
}

// Nothing waits for the answer: the events show meanwhile how the task goes.
function dispatch({ id }, { reload }) {
	toast(t("tasks.dispatchSent"));
	act(() => api.post(`/runtime/llm-tasks/${encodeURIComponent(id)}/dispatch`, {}, { timeout: DISPATCH_MS }), t("tasks.dispatchDone")).then(reload);
}

// The sentence is the server's and in English; before it stands the kind of reason in the reader's language.
function reasons({ reasons: found }) {
	return h("ul", {}, found.map(({ code, sentence }) => h("li", {}, h("strong", {}, known(`tasks.reasons.${code}`, code)), " ", h("span", { lang: "en" }, sentence))));
}

function about(task) {
	const filtered = (name) => task[name] && link(task[name], "tasks", { [name]: task[name] });
	return facts([
		[t("tasks.agent"), filtered("agent_slug")],
		[t("tasks.context_id"), filtered("context_id")],
		[t("tasks.worker"), task.worker_id && link(task.worker_id, "workers", { worker: task.worker_id })],
		[t("tasks.age"), time(task.created_at)],
		[t("tasks.updated"), time(task.updated_at)],
		[t("tasks.attempts"), `${number(task.attempts)} / ${number(task.max_attempts)}`],
		[t("tasks.took"), took(task)],
		[t("tasks.priority"), number(task.priority)],
		[t("tasks.labels"), task.labels.join(", ")],
		[t("tasks.pinned_worker_id"), task.pinned_worker_id],
		[t("tasks.not_before"), task.not_before && time(task.not_before)],
		[t("tasks.retry"), task.status === "queued" && task.retry_at && time(task.retry_at)],
		[t("tasks.desired_format"), task.desired_format],
		[t("tasks.timeout_sec"), duration(task.policy.timeout_sec)],
		[t("tasks.budget"), task.policy.budget ? number(task.policy.budget) : null],
		[t("tasks.key"), task.idempotency_key],
		[t("audit.title"), link(t("audit.trail"), "audit", { entity_id: task.id })],
	]);
}

// --- How it went

// Each attempt as a bar from its start to its end; a mark where the worker was heard of last, a line at its deadline.
function timeline(history) {
	const from = Math.min(...history.map(({ started_at: at }) => at));
	const to = Math.max(...history.map((each) => each.ended_at ?? now()), from + 1);
	const x = (at) => Math.min(1, (at - from) / (to - from)) * WIDTH;
	const words = history.map((each) => `${each.attempt ?? "–"}: ${each.worker_id}, ${took(each)}, ${known(`app.state.${each.outcome}`, t("app.state.running"))}`);
	const height = history.length * ROW;
	return h(
		"figure",
		{ class: "chart timeline" },
		svg(
			"svg",
			{ viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": words.join("; "), height },
			[...history].reverse().map((each, row) => [
				svg("rect", { class: `bar-${each.outcome ?? "running"}`, x: x(each.started_at), y: row * ROW + 4, height: ROW - 8, width: Math.max(2, x(each.ended_at ?? now()) - x(each.started_at)) }),
				each.last_heartbeat && svg("line", { class: "beat", x1: x(each.last_heartbeat), x2: x(each.last_heartbeat), y1: row * ROW + 1, y2: row * ROW + ROW - 1 }),
				each.deadline_at && each.deadline_at <= to && svg("line", { class: "gap", x1: x(each.deadline_at), x2: x(each.deadline_at), y1: row * ROW, y2: row * ROW + ROW }),
			]),
		),
		h("div", { class: "ends", "aria-hidden": "true" }, h("span", {}, exact(from)), h("span", {}, exact(to))),
	);
}

function attempts(history) {
	return table({
		caption: t("tasks.attempts"),
		rows: history,
		rowKey: (each) => each.lease_id,
		columns: [
			{ title: "#", number: true, cell: (each) => each.attempt ?? "–" },
			{ title: t("tasks.outcome"), cell: (each) => badge(each.outcome ?? "running") },
			{ title: t("tasks.worker"), cell: (each) => link(each.worker_id, "workers", { worker: each.worker_id }) },
			{ title: t("tasks.started"), cell: (each) => time(each.started_at) },
			{ title: t("tasks.heartbeat"), cell: (each) => time(each.last_heartbeat) },
			{ title: t("tasks.deadline"), cell: (each) => (each.ended_at ? "–" : time(each.deadline_at)) },
			{ title: t("tasks.took"), number: true, cell: (each) => took(each) },
			{ title: t("tasks.error"), cell: (each) => (each.error ? h("span", { class: "wrong" }, each.error) : "–") },
			{ title: t("tasks.lease"), cell: (each) => h("small", { class: "mono" }, each.lease_id) },
		],
	});
}

// --- What came of it

function result({ result: said, error_message: told }, content, context) {
	const { status, error_message: error, metrics, completed_at: at } = said;
	return [
		facts([
			[t("tasks.outcome"), badge(status)],
			[t("tasks.completed"), time(at)],
			[t("tasks.took"), milliseconds(metrics.duration_ms)],
			[t("tasks.tokens"), typeof metrics.tokens_used === "number" && number(metrics.tokens_used)],
			[t("tasks.cost"), typeof metrics.cost_usd === "number" && number(metrics.cost_usd, { style: "currency", currency: "USD", maximumFractionDigits: 4 })],
		]),
		error && error !== told && h("pre", { class: "wrong" }, error),
		content instanceof Problem ? lacking(content, context.reload) : output(said, content, context),
	];
}

function output({ output: told, output_truncated: cut, artifact_id: artifact }, content, { state, redraw }) {
	const text = told ?? content?.text;
	if (text === undefined) return null;
	const saved = artifact && [" ", download(artifact)];
	if (text === null) return h("p", {}, t("tasks.binary", { size: bytes(content.size) }), saved);
	const whole = told === null ? content.whole : !cut;
	const pretty = whole ? parsed(text) : undefined;
	const shown = pretty === undefined || state.raw ? text : pretty;
	const turn = () => {
		state.raw = !state.raw;
		redraw();
	};
	return [
		// What is only a beginning is not copied as if it were all.
		whole && h("div", { class: "buttons" }, pretty !== undefined && button(t(state.raw ? "tasks.formatted" : "tasks.raw"), turn), copyButton(text)),
		h("pre", { tabindex: "0" }, shown.slice(0, DRAWN)),
		(!whole || shown.length > DRAWN) && h("p", {}, t("tasks.cut"), saved),
	];
}

// Content that cannot be had: it is gone or damaged, or the object store is away, which may pass.
function lacking(problem, reload) {
	const advice = [404, 500].includes(problem.status) ? { advice: t("tasks.lost") } : {};
	return problemBox(problem, reload, { what: t("tasks.noContent"), ...advice });
}

// JSON with a line for each thing; undefined for what is none.
function parsed(output) {
	try {
		const value = JSON.parse(output);
		return typeof value === "object" && value !== null ? JSON.stringify(value, null, 2) : undefined;
	} catch {
		return undefined;
	}
}

function hints(found) {
	return found.length > 0 && [h("h3", {}, t("tasks.hints")), h("ul", {}, found.map((hint) => h("li", { class: "mono" }, hint)))];
}

function files(found) {
	return table({
		caption: t("tasks.artifacts"),
		rows: found,
		columns: [
			{ title: t("tasks.name"), cell: (each) => each.name ?? each.id },
			{ title: t("tasks.type"), cell: (each) => [each.type, each.content_type && h("small", {}, ` ${each.content_type}`)] },
			{ title: t("tasks.size"), number: true, cell: (each) => bytes(each.size) },
			{ title: "sha256", cell: (each) => (each.sha256 ? h("span", { class: "mono", title: each.sha256 }, each.sha256.slice(0, 12)) : "–") },
			{ title: t("tasks.age"), cell: (each) => time(each.created_at) },
			{ title: t("app.actions"), cell: (each) => (each.size === null && each.url === null ? "–" : download(each.id, each.name ?? each.id)) },
		],
	});
}

function contentOf(id) {
	return `/runtime/artifacts/${encodeURIComponent(id)}/content`;
}

// A browser says next to nothing of a download that fails: so it is asked for first whether there is something.
function download(id, name = id) {
	const saving = { href: `/api${contentOf(id)}`, download: name };
	const save = async (event) => {
		event.preventDefault();
		const link = event.currentTarget;
		if (link.hasAttribute("aria-busy")) return;
		link.setAttribute("aria-busy", "true");
		const there = await act(() => api.peek(contentOf(id)), null, t("tasks.noContent"));
		link.removeAttribute("aria-busy");
		if (there) h("a", saving).click();
	};
	return h("a", { ...saving, "aria-label": `${t("tasks.download")}: ${name}`, onclick: save }, t("tasks.download"));
}
