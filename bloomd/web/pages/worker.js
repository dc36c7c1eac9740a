// One worker: all that is known of it, what it holds, how its agent is, and its tokens. A name may have tokens before its
// worker has come for the first time, and after it was removed.

import { Problem, api, settle } from "../api.js";
import { h } from "../dom.js";
import { time } from "../format.js";
import { number, t } from "../i18n.js";
import { act, badge, button, card, confirm, facts, link, problemBox, showSecret, table } from "../ui.js";
import { install } from "./enrol.js";
import { holds, labels, load, path, standing } from "./fleet.js";
import { step, word } from "./hold.js";

// What the page shows by itself; the rest of the capabilities is shown as it came.
const READ = ["claude_cli", "max_concurrency", "labels"];

// Whether an event may say something of this worker. Whose task it is, an event of a task does not say.
export function worthALook(type, { action, entity_id: entity }, id) {
	return type === "worker" ? entity === id : action !== "task.created";
}

export async function loadWorker({ params, signal }) {
	const id = params.get("worker");
	const get = (at, query) => api.get(at, query, { signal });
	const held = (status) => get("/runtime/llm-tasks", { worker_id: id, status });
	const { worker, tokens, tasks } = await settle({
		worker: get(path(id)),
		tokens: get(`${path(id)}/tokens`, { limit: 1000 }),
		tasks: Promise.all([held("leased"), held("running")]),
	});
	if (worker instanceof Problem && worker.status !== 404) throw worker;
	// A name that nobody has has no tokens.
	return { id, worker: found(worker, null), tokens: found(tokens, []), tasks };
}

function found(answer, nothing) {
	return answer instanceof Problem && answer.status === 404 ? nothing : answer;
}

export function renderWorker({ id, worker, tokens, tasks }, context) {
	const all = { ...Object.fromEntries(context.params), worker: "" };
	return [
		h("header", { class: "bar" }, h("h1", {}, link(t("workers.title"), "workers", all), " / ", id), worker && standing(worker)),
		worker ? [actions(worker, context), about(worker), leases(worker, tasks), worker.url && agent(worker, context)] : absent(id, context),
		tokenCard(id, tokens, context),
	];
}

function absent(id, context) {
	return card(null, h("p", {}, t("workers.absent")), button(t("workers.install"), () => install(context, id), { kind: "primary" }));
}

function actions(worker, { reload }) {
	const does = (verb, kind) => button(word(verb), () => step(verb, worker, reload), { kind, key: verb });
	return h(
		"div",
		{ class: "bar", role: "group", "aria-label": t("app.actions"), key: "actions" },
		holds(worker).map((verb) => does(verb)),
		worker.url && [does("update"), does("restart"), does("uninstall", "danger")],
		does("remove", "danger"),
		!worker.url && h("small", {}, t("workers.byHand")),
	);
}

function about(worker) {
	const { capabilities, obs_count: observations } = worker;
	const others = Object.fromEntries(Object.entries(capabilities).filter(([name]) => !READ.includes(name)));
	return card(
		null,
		facts([
			[t("workers.leases"), load(worker)],
			[t("tasks.heartbeat"), time(worker.last_heartbeat, t("keys.never"))],
			[t("workers.registeredAt"), time(worker.registered_at)],
			[t("workers.from"), t(`workers.source.${worker.source}`)],
			[t("membridge.node"), worker.node_id !== worker.id && worker.node_id],
			[t("membridge.url"), worker.url ? h("span", { class: "mono" }, worker.url) : t("workers.noUrl")],
			[t("workers.ips"), worker.ip_addrs.join(", ")],
			[t("membridge.version"), worker.agent_version],
			[t("workers.system"), worker.os_info],
			[t("workers.installed"), worker.install_method],
			[t("tasks.labels"), labels(worker)],
			[t("membridge.observations"), observations > 0 && number(observations)],
			[t("membridge.sha"), worker.db_sha && h("span", { class: "mono" }, worker.db_sha)],
		]),
		Object.keys(others).length > 0 &&
			h("details", {}, h("summary", {}, t("workers.capabilities")), h("pre", { tabindex: "0" }, JSON.stringify(others, null, 2))),
	);
}

function leases({ leases: rows }, tasks) {
	const known = tasks instanceof Problem ? [] : tasks.flat();
	const taskOf = ({ task_id: id }) => known.find((task) => task.id === id);
	return card(
		t("workers.leases"),
		tasks instanceof Problem && problemBox(tasks),
		table({
			caption: t("workers.leases"),
			rows,
			empty: t("app.nothing"),
			columns: [
				{ title: t("workers.task"), cell: (lease) => taskCell(lease, taskOf(lease)) },
				{ title: t("tasks.status"), cell: (lease) => (taskOf(lease) ? badge(taskOf(lease).status) : "–") },
				{ title: t("tasks.attempts"), number: true, cell: ({ attempt }) => attempt ?? "–" },
				{ title: t("tasks.started"), cell: (lease) => time(lease.started_at) },
				{ title: t("tasks.heartbeat"), cell: (lease) => time(lease.last_heartbeat, t("keys.never")) },
				{ title: t("workers.expires"), cell: (lease) => time(lease.expires_at) },
				{ title: t("workers.progress"), cell: (lease) => taskOf(lease)?.progress ?? "–" },
			],
		}),
	);
}

function taskCell({ task_id: task, context_id: place }, known) {
	return [link(task, "tasks", { task }, { class: "mono" }), known && h("div", { class: "cut" }, known.prompt), place && h("small", {}, place)];
}

// --- The agent

function agent(worker, { state, signal, redraw, reload }) {
	const asked = (state.health ??= new Map());
	const ask = async () => {
		let said;
		try {
			said = await api.get(`${path(worker.id)}/agent-health`);
		} catch (error) {
			if (!(error instanceof Problem) || error.status === 401) throw error;
			said = error;
		}
		asked.set(worker.id, { said, at: Date.now() });
		if (!signal.aborted) await reload();
		redraw();
	};
	const answer = asked.get(worker.id);
	return card(
		null,
		h("div", { class: "bar" }, h("h2", {}, t("tasks.agent")), button(t("workers.health"), ask, { key: "ask" })),
		h("div", { role: "status" }, answer ? told(answer) : h("small", {}, t("workers.notAsked"))),
	);
}

function told({ said, at }) {
	if (said instanceof Problem) return problemBox(said);
	// What else it says has gone into what is known of the worker.
	const { reachable, error, hostname } = said;
	const what = error ? h("span", { class: "wrong" }, error) : hostname;
	return h("p", {}, badge(reachable ? "up" : "down"), " ", what, " ", h("small", {}, time(at)));
}

// --- Tokens

function tokenCard(id, tokens, { reload }) {
	return card(
		null,
		h("div", { class: "bar" }, h("h2", {}, t("workers.tokens")), button(t("workers.addToken"), () => addToken(id, reload), { key: "add" })),
		h("p", {}, h("small", {}, t("workers.tokensIntro"))),
		tokens instanceof Problem
			? problemBox(tokens)
			: table({
					caption: t("workers.tokens"),
					rows: tokens,
					columns: [
						{ title: t("workers.token"), cell: (token) => h("span", { class: "mono" }, token.id) },
						{ title: t("keys.created"), cell: (token) => time(token.created_at) },
						{ title: t("keys.by"), cell: (token) => token.created_by },
						{ title: t("keys.used"), cell: (token) => time(token.last_used_at, t("keys.never")) },
						{
							title: t("app.actions"),
							cell: (token) => {
								const name = `${t("keys.remove")}: ${token.id}`;
								return button(t("keys.remove"), () => removeToken(token, reload), { kind: "danger", name });
							},
						},
					],
				}),
	);
}

async function addToken(id, reload) {
	let made;
	if (!(await act(async () => (made = await api.post(`${path(id)}/tokens`))))) return;
	reload();
	await showSecret(`${t("workers.token")}: ${id}`, t("keys.once"), made.secret);
}

async function removeToken({ id, worker_id: worker, last_used_at: used }, reload) {
	const what = [h("p", {}, t("keys.removeWhat")), facts([[t("keys.used"), time(used, t("keys.never"))]])];
	if (!(await confirm(`${t("keys.remove")}: ${id}?`, what, { action: t("keys.remove") }))) return;
	const done = t("workers.done", { action: t("keys.remove"), name: id });
	await act(
		() => api.delete(`${path(worker)}/tokens/${encodeURIComponent(id)}`),
		({ authentication }) => (authentication === "off" ? `${done} ${t("app.open")}` : done),
	);
	reload();
}
