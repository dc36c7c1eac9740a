// Membridge: its projects with who leads them, its agents, what was pushed and pulled; and the projects that bloomd manages.

import { Problem, api, settle } from "../api.js";
import { h } from "../dom.js";
import { time } from "../format.js";
import { known, t } from "../i18n.js";
import { badge, button, card, facts, link, pager, problemBox, table } from "../ui.js";
import { create } from "./managed.js";
import { asked, count, digest, isCanonical, leadership, list, memory, moment, unknown } from "./plane.js";
import { loadProject, renderProject } from "./project.js";

// Of so many projects the nodes are compared here, and of each not more often than this.
const COMPARED = 20;
const FRESH_MS = 60_000;

export const membridge = {
  title: () => t("membridge.title"),
  types: ["audit"],
  every: 20_000, // what nodes say of themselves is no event

  onEvent: (_type, _entry, { state }) => {
    state.compared = {};
  },

  async load(context) {
    const { params, signal } = context;
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
    agents: list("agents", "agents"),
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

function overview({ config, managed, params }, context) {
  const { state } = context;
  const said = state.said?.all;
  const isMissing = !(config instanceof Problem) && !config.membridge_server_url && !(said && !(said.health instanceof Problem));
  const part = (name, shown) => {
    if (!said) return h("p", { class: "empty" }, t("membridge.asking"));
    return said[name] instanceof Problem ? problemBox(said[name]) : shown(said[name]);
  };
  const plane = () => [
    card(t("membridge.server"), part("health", (health) => connection(health, config)), said?.health instanceof Problem && link(t("membridge.setUp"), "runtime")),
    card(t("membridge.projects"), part("projects", (rows) => projects(rows, managed, context))),
    card(t("membridge.agents"), part("agents", agents)),
    card(t("membridge.jobs"), part("jobs", jobs)),
  ];
  return [
    h("header", { class: "bar" }, h("h1", {}, t("membridge.title"))),
    isMissing
      ? card(t("membridge.server"), h("p", {}, t("membridge.missing")), link(t("membridge.setUp"), "runtime"))
      : plane().slice(0, 2),
    h(
      "section",
      { class: "card", key: "managed" },
      h("div", { class: "bar" }, h("h2", {}, t("membridge.managed")), button(t("membridge.create"), () => create(context))),
      managed instanceof Problem ? problemBox(managed) : [managedTable(managed.rows), pager("membridge", params, managed.next)],
    ),
    !isMissing && plane().slice(2),
  ];
}

function connection(health, config) {
  const { status, service, version, projects, agents } = health ?? {};
  return facts([
    [t("membridge.state"), unknown(status, badge)],
    [t("membridge.url"), config instanceof Problem ? unknown() : config.membridge_server_url],
    [t("membridge.service"), unknown(service)],
    [t("membridge.version"), unknown(version)],
    [t("membridge.projects"), count(projects)],
    [t("membridge.agents"), count(agents)],
  ]);
}

function projects(rows, managed, { state }) {
  const nodesOf = ({ canonical_id: id }) => state.compared?.[id] ?? {};
  const managedOf = ({ canonical_id: id }) => (managed.rows ?? []).find((project) => project.canonical_id === id);
  return table({
    caption: t("membridge.projects"),
    rows,
    rowKey: (project) => project.canonical_id ?? project.name,
    empty: t("membridge.noProjects"),
    columns: [
      {
        title: t("membridge.name"),
        cell: ({ name, canonical_id: id }) => (isCanonical(id) ? link(name || id, "membridge", { project: id }) : unknown(name)),
      },
      { title: t("membridge.memory"), cell: (project) => unknown(nodesOf(project).nodes, (nodes) => (nodes.length ? badge(memory(nodes)) : "–")) },
      { title: t("membridge.primary"), cell: (project) => unknown(nodesOf(project).leader, ({ primary }) => primary ?? "–") },
      { title: t("membridge.nodes"), number: true, cell: (project) => count(project.nodes_count) },
      { title: t("membridge.seen"), cell: (project) => moment(project.last_seen) },
      { title: t("membridge.source"), cell: ({ source }) => unknown(source, (each) => known(`membridge.source.${each}`, each)) },
      { title: t("membridge.managedHere"), cell: (project) => (managedOf(project) ? badge(managedOf(project).clone_status) : "–") },
    ],
  });
}

function managedTable(rows) {
  return table({
    caption: t("membridge.managed"),
    rows,
    empty: t("membridge.noManaged"),
    columns: [
      { title: t("membridge.name"), cell: ({ id, name }) => link(name, "membridge", { managed: id }) },
      { title: t("membridge.state"), cell: (project) => badge(project.clone_status) },
      { title: t("membridge.repository"), cell: (project) => project.repo_url },
      { title: t("membridge.primary"), cell: (project) => project.primary_node_id ?? "–" },
      { title: t("membridge.updated"), cell: (project) => time(project.updated_at) },
      { title: t("membridge.error"), cell: (project) => project.error_message ?? "–" },
    ],
  });
}

function agents(rows) {
  return table({
    caption: t("membridge.agents"),
    rows,
    rowKey: (agent) => agent.name,
    empty: t("membridge.noAgents"),
    columns: [
      { title: t("membridge.name"), cell: ({ name }) => unknown(name, (worker) => link(worker, "workers", { worker })) },
      { title: t("membridge.state"), cell: ({ status }) => badge(status ?? "unknown") },
      { title: t("membridge.seen"), cell: (agent) => moment(agent.last_seen) },
      { title: t("membridge.observations"), number: true, cell: (agent) => count(agent.obs_count) },
      { title: t("membridge.sha"), cell: (agent) => digest(agent.db_sha) },
      { title: t("membridge.version"), cell: (agent) => unknown(agent.agent_version) },
      { title: t("membridge.url"), cell: (agent) => unknown(agent.url) },
    ],
  });
}

function jobs(rows) {
  return table({
    caption: t("membridge.jobs"),
    rows,
    rowKey: (job) => job.id ?? job.job_id,
    empty: t("membridge.noJobs"),
    columns: [
      { title: t("membridge.begun"), cell: (job) => moment(job.created_at) },
      { title: t("membridge.what"), cell: ({ action }) => unknown(action, (each) => known(`membridge.${each}`, each)) },
      { title: t("membridge.project"), cell: (job) => unknown(job.project) },
      { title: t("membridge.node"), cell: (job) => unknown(job.agent) },
      { title: t("membridge.state"), cell: ({ status }) => badge(status ?? "unknown") },
      { title: t("membridge.detail"), cell: (job) => job.detail || "–" },
    ],
  });
}
