// One project: who leads it and what its nodes remember, as Membridge has it; and where bloomd has brought it.
// The address has its canonical id (project=...), or the id under which bloomd manages it (managed=...).

import { Problem, api, settle } from "../api.js";
import { h } from "../dom.js";
import { duration } from "../format.js";
import { known, t } from "../i18n.js";
import { badge, button, card, facts, field, formDialog, link, problemBox, select, table, toast } from "../ui.js";
import { managedProject } from "./managed.js";
import { asked, column, count, digest, leadership, list, memory, moment, unknown } from "./plane.js";

// How long a node may be promoted for, in seconds; Membridge's own default is the second.
const TERMS = [900, 3600, 28_800, 86_400, 604_800];

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
    card("Membridge", said ? led(id, called, said, context) : h("p", { class: "empty" }, t("membridge.asking"))),
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
      column("membridge.role", ({ role }) => known(`membridge.role.${role}`, unknown(role === "unknown" ? null : role))),
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
