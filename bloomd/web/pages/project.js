// One project: who leads it and what its nodes remember, as Membridge has it; and where bloomd has brought it.
// The address has its canonical id (project=...), or the id under which bloomd manages it (managed=...).

import { Problem, api, settle } from "../api.js";
import { h } from "../dom.js";
import { duration, time } from "../format.js";
import { known, t } from "../i18n.js";
import { go } from "../router.js";
import { act, badge, button, card, confirm, facts, field, formDialog, link, problemBox, select, table, toast } from "../ui.js";
import { asked, column, count, digest, leadership, list, memory, moment, unknown } from "./plane.js";

// How long a node may be promoted for, in seconds; Membridge's own default is the second.
const TERMS = [900, 3600, 28_800, 86_400, 604_800];

// A clone over a slow line may take a node fifteen minutes; the server gives up before this.
const LONG = { timeout: 920_000 };

// So many nodes are named in a question.
const NAMED = 8;

export async function loadProject(context) {
	const { params } = context;
	const { managed } = await settle({ managed: managedOf(params) });
	if (managed instanceof Problem && params.has("managed")) throw managed;
	const id = params.get("project") ?? managed.canonical_id;
	await asked(context, id, () => about(id));
	return { id, managed, params };
}

async function about(id) {
	const [led, { rows }] = await Promise.all([leadership(id), settle({ rows: list("projects", "projects") })]);
	return { ...led, name: rows.find?.((project) => project.canonical_id === id)?.name };
}

async function managedOf(params) {
	let id = params.get("managed");
	// Membridge knows nothing of bloomd's ids.
	id ??= (await api.get("/runtime/projects", { limit: 1000 })).find((each) => each.canonical_id === params.get("project"))?.id;
	return id ? api.get(`/runtime/projects/${encodeURIComponent(id)}`) : null;
}

export function renderProject({ id, managed }, context) {
	const said = context.state.said?.[id];
	const called = managed?.name ?? said?.name ?? id;
	const isManaged = managed && (managed instanceof Problem ? problemBox(managed) : managedProject(managed, context));
	return [
		h("header", { class: "bar" }, h("h1", {}, called), link("← Membridge", "membridge")),
		card("Membridge", said ? led(id, called, said, context) : h("p", { class: "empty" }, t(said === null ? "membridge.missing" : "membridge.asking"))),
		card(t("membridge.managedHere"), isManaged ?? h("p", { class: "empty" }, t("membridge.notManaged"))),
	];
}

function led(id, called, { problem, leader, nodes }, { reload }) {
	if (!nodes) return problemBox(problem);
	const { primary } = leader;
	return [
		problem && problemBox(problem),
		facts([
			[t("membridge.canonical"), h("code", {}, id)],
			[t("membridge.primary"), problem ? unknown() : (primary ?? t("membridge.nobody"))],
			[t("membridge.epoch"), primary && unknown(leader.epoch)],
			[t("membridge.since"), primary && moment(leader.issued_at)],
			[t("membridge.until"), primary && moment(leader.expires_at)],
			[t("membridge.memory"), badge(memory(nodes))],
		]),
		nodeTable(nodes, primary, (node) => promote(id, called, leader, node, reload)),
	];
}

function nodeTable(nodes, primary, promoted) {
	const sha = (nodes.find((node) => node.node_id === primary) ?? nodes.find((node) => node.db_sha))?.db_sha;
	const action = ({ node_id: node }) => {
		const label = t(node === primary ? "membridge.extend" : "membridge.promote");
		return button(label, () => promoted(node), { name: `${label}: ${node}` });
	};
	return table({
		caption: t("membridge.nodes"),
		rows: nodes,
		rowKey: (node) => node.node_id,
		empty: `${t("membridge.nodes")}: 0`,
		columns: [
			column("membridge.node", ({ node_id: worker }) => link(worker, "workers", { worker })),
			column("membridge.role", ({ role }) => known(`membridge.roles.${role}`, unknown(role === "unknown" ? null : role))),
			column("membridge.observations", (node) => count(node.obs_count), true),
			column("membridge.sha", (node) => digest(node.db_sha, sha)),
			column("membridge.seen", (node) => moment(node.last_seen)),
			column("app.actions", action),
		],
	});
}

async function promote(id, called, { primary, epoch }, node, reload) {
	const terms = TERMS.map((seconds) => [String(seconds), duration(seconds)]);
	const now = { primary: primary ?? t("membridge.nobody"), epoch: epoch ?? "–" };
	const done = await formDialog(t(node === primary ? "membridge.extend" : "membridge.promote"), {
		intro: t("membridge.promoteWhat", { node, project: called, ...now }),
		fields: () => field(t("membridge.term"), select(terms, "3600", null, { name: "term" })),
		submit: (form) => {
			const body = { primary_node_id: node, lease_seconds: Number(form.get("term")) };
			return api.post(`/membridge/projects/${id}/leadership/select`, body);
		},
	});
	if (!done) return;
	toast(t("membridge.promoted", { node, epoch: done.epoch ?? "–" }));
	reload();
}

// --- What bloomd manages: a project is made known, brought to the nodes, its memory to Membridge, forgotten. What takes long
// goes on when nobody waits for it; how far it is, and what came of it, the table of its nodes says.

function managedProject(project, { reload }) {
	const does = (key, action, kind) => button(t(key), () => action(project, reload), { kind });
	return [
		facts([
			[t("membridge.state"), badge(project.clone_status)],
			[t("membridge.repository"), project.repo_url],
			[t("membridge.path"), project.target_path],
			[t("membridge.primary"), project.primary_node_id ?? "–"],
			[t("membridge.updated"), time(project.updated_at)],
		]),
		project.error_message && h("p", { class: "wrong" }, project.error_message),
		h(
			"div",
			{ class: "buttons", key: project.id }, // one that is busy is so for this project
			does("membridge.clone", clone),
			does("membridge.propagate", propagate),
			does("membridge.sync", sync),
			does("membridge.forget", forget, "danger"),
		),
		h("h3", {}, t("membridge.nodes")),
		table({
			caption: `${t("membridge.managedHere")}: ${t("membridge.nodes")}`,
			rows: project.nodes,
			empty: `${t("membridge.nodes")}: 0`,
			columns: [
				column("membridge.node", (node) => node.node_id),
				column("membridge.state", (node) => badge(node.clone_status)),
				column("membridge.path", (node) => node.repo_path ?? "–"),
				column("membridge.synced", (node) => time(node.last_sync_at)),
				column("membridge.error", (node) => node.error_message ?? "–"),
			],
		}),
	];
}

export async function create() {
	const text = (name, hint, attributes) =>
		field(t(`membridge.${name}`), h("input", { name, autocomplete: "off", ...attributes }), { hint: t(hint) });
	const made = await formDialog(t("membridge.create"), {
		fields: () => [
			text("name", "membridge.nameHint", { required: true, maxlength: 256, autofocus: true }),
			text("repository", "membridge.repositoryHint", { required: true, maxlength: 2048 }),
			text("path", "membridge.pathHint", { maxlength: 1024 }),
		],
		submit: (form) => {
			const body = { name: form.get("name"), repo_url: form.get("repository"), target_path: form.get("path") || undefined };
			return api.post("/runtime/projects", body);
		},
	});
	if (made) go("membridge", { managed: made.id });
}

// The workers that are online and can be asked.
async function reachable() {
	return (await api.get("/runtime/workers", { status: "online", limit: 1000 })).filter((worker) => worker.url);
}

// Ask for a node, and with it for more; what is sent then.
async function askNode(title, intro, ...more) {
	const workers = await reachable().catch(() => []); // then a node can still be typed
	const node = h("input", { name: "node_id", list: "nodes", autocomplete: "off", maxlength: 128 });
	return formDialog(title, {
		intro,
		fields: () => [
			more,
			field(t("membridge.node"), node, { hint: t("membridge.nodeHint") }),
			h("datalist", { id: "nodes" }, workers.map(({ id }) => h("option", { value: id }))),
		],
		submit: (form) => Object.fromEntries([...form].filter(([, value]) => value)),
	});
}

async function clone(project, reload) {
	const body = await askNode(t("membridge.clone"), t("membridge.cloneWhat", { project: project.name }));
	if (body) await run(project, "clone", body, reload);
}

async function sync(project, reload) {
	const directions = [["push", t("membridge.push")], ["pull", t("membridge.pull")]];
	const direction = field(t("membridge.direction"), select(directions, "push", null, { name: "direction" }));
	const body = await askNode(t("membridge.sync"), t("membridge.syncWhat", { project: project.name }), direction);
	if (body) await run(project, "sync-memory", body, reload);
}

async function propagate(project, reload) {
	const primary = project.primary_node_id;
	let nodes;
	const ask = async () => {
		nodes = (await reachable()).filter(({ id, node_id: node }) => ![id, node].includes(primary)).map(({ id }) => id);
	};
	if (!(await act(ask))) return;
	if (nodes.length === 0) return toast(t("membridge.nothing"), { kind: "bad" });
	const named = nodes.slice(0, NAMED).join(", ") + (nodes.length > NAMED ? ", …" : "");
	const what = t("membridge.propagateWhat", { n: nodes.length, project: project.name, nodes: named });
	if (await confirm(t("membridge.propagate"), what, { danger: false })) await run(project, "propagate", {}, reload);
}

async function run(project, what, body, reload) {
	await act(async () => {
		const { results = [{ ok: true }] } = await api.post(`/runtime/projects/${project.id}/${what}`, body, LONG);
		const n = results.length;
		const done = results.filter(({ ok }) => ok).length;
		toast(t("membridge.result", { project: project.name, done, n }), { kind: done === n ? "good" : "bad" });
	});
	reload();
}

async function forget(project) {
	const what = t("membridge.forgetWhat", { n: project.nodes.length });
	if (!(await confirm(t("membridge.forgetTitle", { name: project.name }), what, { action: t("membridge.forget") }))) return;
	if (await act(() => api.delete(`/runtime/projects/${project.id}`))) go("membridge");
}
