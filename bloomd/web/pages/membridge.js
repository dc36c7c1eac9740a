// Membridge: its projects with who leads them, what was pushed and pulled; and the projects that bloomd manages.

import { Problem, api, settle } from "../api.js";
import { h } from "../dom.js";
import { time } from "../format.js";
import { known, t } from "../i18n.js";
import { badge, button, card, facts, link, pager, problemBox, table } from "../ui.js";
import { asked, column, count, isCanonical, leadership, list, memory, moment, unknown } from "./plane.js";
import { create, loadProject, renderProject } from "./project.js";

// Of so many projects the nodes are compared here, and of each not more often than this.
const COMPARED = 20;
const FRESH_MS = 60_000;

export const membridge = {
	title: () => "Membridge",
	types: ["audit"],
	every: 20_000, // what nodes say of themselves is no event

	onEvent(type, entry, { state }) {
		if (type !== "reset" && !/^(membridge|project|config)\./.test(entry.action)) return true;
		state.compared = {};
		return false;
	},

	async load(context) {
		const { params, signal, state } = context;
		if (isOne(params)) return loadProject(context);
		const [parts] = await Promise.all([
			settle({
				config: api.get("/runtime/config", {}, { signal }),
				managed: api.list("/runtime/projects", { cursor: params.get("cursor") }, { signal }),
			}),
			asked(context, "all", () => all(context)),
		]);
		return { ...parts, params };
	},

	// Until the next is there, what is shown is of the address before.
	render: (data, context) => (isOne(data.params) ? renderProject : overview)(data, context),
};

function isOne(params) {
	return params.has("project") || params.has("managed");
}

async function all({ state }) {
	const said = await settle({
		health: api.get("/membridge/health"),
		projects: list("projects", "projects"),
		jobs: list("jobs", "jobs", { limit: 20 }),
	});
	const compared = (state.compared ??= {});
	const due = (Array.isArray(said.projects) ? said.projects : [])
		.map((project) => project.canonical_id)
		.filter(isCanonical)
		.slice(0, COMPARED)
		.filter((id) => !(compared[id]?.at > Date.now() - FRESH_MS));
	await Promise.all(due.map(async (id) => (compared[id] = { at: Date.now(), ...(await leadership(id)) })));
	return said;
}

function overview({ config, managed, params }, { state }) {
	const said = state.said?.all;
	const failed = said?.health instanceof Problem;
	const isMissing = said === null;
	const part = (title, name, shown, ...more) => {
		// Nothing answers: that is said once.
		if (failed && name !== "health" && said[name].message === said.health.message) return null;
		const content = () => (said[name] instanceof Problem ? problemBox(said[name]) : shown(said[name]));
		return card(t(title), said ? content() : h("p", { class: "empty" }, t("membridge.asking")), more);
	};
	const setUp = link(t("membridge.setUp"), "runtime");
	return [
		h("header", { class: "bar" }, h("h1", {}, "Membridge")),
		isMissing
			? card(t("membridge.server"), h("p", {}, t("membridge.missing")), setUp)
			: [
					part("membridge.server", "health", (health) => connection(health, config), failed && setUp),
					part("membridge.projects", "projects", (rows) => projects(rows, managed, state)),
				],
		card(
			null,
			h("div", { class: "bar" }, h("h2", {}, t("membridge.managed")), button(t("membridge.create"), create)),
			managed instanceof Problem ? problemBox(managed) : [managedTable(managed.rows), pager("membridge", params, managed.next)],
		),
		!isMissing && part("membridge.jobs", "jobs", jobs),
	];
}

function connection(health, { membridge_server_url: url }) {
	return facts([
		[t("membridge.state"), unknown(health?.status, badge)],
		[t("membridge.url"), unknown(url)],
		[t("membridge.version"), unknown(health?.version)],
		[t("membridge.projects"), count(health?.projects)],
		[t("membridge.agents"), link(count(health?.agents), "workers")],
	]);
}

function projects(rows, managed, { compared }) {
	const of = ({ canonical_id: id }) => compared?.[id] ?? {};
	const clone = ({ canonical_id: id }) => managed.rows?.find((project) => project.canonical_id === id);
	return table({
		caption: t("membridge.projects"),
		rows,
		rowKey: (project) => project.canonical_id ?? project.name,
		columns: [
			column("membridge.name", ({ name, canonical_id: id }) =>
				isCanonical(id) ? link(name || id, "membridge", { project: id }) : unknown(name),
			),
			column("membridge.memory", (project) => unknown(of(project).nodes, (nodes) => (nodes.length ? badge(memory(nodes)) : "–"))),
			column("membridge.primary", (project) => unknown(of(project).leader, ({ primary }) => primary ?? "–")),
			column("membridge.nodes", (project) => count(project.nodes_count), true),
			column("membridge.seen", (project) => moment(project.last_seen)),
			column("membridge.managedHere", (project) => (clone(project) ? badge(clone(project).clone_status) : "–")),
		],
	});
}

function managedTable(rows) {
	return table({
		caption: t("membridge.managed"),
		rows,
		columns: [
			column("membridge.name", ({ id, name }) => link(name, "membridge", { managed: id })),
			column("membridge.state", (project) => badge(project.clone_status)),
			column("membridge.repository", (project) => project.repo_url),
			column("membridge.primary", (project) => project.primary_node_id ?? "–"),
			column("membridge.updated", (project) => time(project.updated_at)),
			column("membridge.error", (project) => project.error_message ?? "–"),
		],
	});
}

function jobs(rows) {
	return table({
		caption: t("membridge.jobs"),
		rows,
		rowKey: (job) => job.id ?? job.job_id,
		columns: [
			column("audit.when", (job) => moment(job.created_at)),
			column("audit.action", ({ action }) => unknown(action, (each) => known(`membridge.${each}`, each))),
			column("membridge.project", (job) => unknown(job.project)),
			column("membridge.node", (job) => unknown(job.agent)),
			column("membridge.state", ({ status }) => unknown(status, badge)),
			column("audit.detail", (job) => job.detail || "–"),
		],
	});
}
