// One project: who leads it and what its nodes remember, as Membridge has it; and where bloomd has brought it.
// The address has its canonical id (project=...), or the id under which bloomd manages it (managed=...).

import { Problem, api, settle } from "../api.js";
import { h } from "../dom.js";
import { duration, time } from "../format.js";
import { known, t } from "../i18n.js";
import { badge, button, card, facts, field, formDialog, link, problemBox, select, table, toast } from "../ui.js";
import { managedCard } from "./managed.js";
import { asked, count, digest, leadership, memory, moment, unknown } from "./plane.js";

// How long a node may be promoted for, in seconds; Membridge's own default is the second.
const TERMS = [900, 3600, 28_800, 86_400, 604_800];

export async function loadProject(context) {
  const { params } = context;
  const { managed } = await settle({ managed: manager(params) });
  if (managed instanceof Problem && params.has("managed")) throw managed;
  const id = params.get("project") ?? managed.canonical_id;
  await asked(context, id, () => leadership(id));
  return { id, managed, params };
}

async function manager(params) {
  let id = params.get("managed");
  // Membridge knows nothing of bloomd's ids.
  id ??= (await api.get("/runtime/projects", { limit: 1000 })).find((each) => each.canonical_id === params.get("project"))?.id;
  return id ? api.get(`/runtime/projects/${encodeURIComponent(id)}`) : null;
}

export function renderProject({ id, managed }, context) {
  const said = context.state.said?.[id];
  const called = managed?.name ?? said?.nodes?.find((node) => node.project_id)?.project_id ?? id;
  return [
    h("header", { class: "bar" }, h("h1", {}, called), link(t("membridge.back"), "membridge")),
    card(t("membridge.leadership"), said ? leadershipOf(id, called, said, context) : h("p", { class: "empty" }, t("membridge.asking"))),
    managed instanceof Problem ? card(t("membridge.managedHere"), problemBox(managed)) : managedCard(managed, context),
  ];
}

function leadershipOf(id, called, { problem, leader, nodes }, { reload }) {
  return [
    problem && problemBox(problem),
    nodes &&
      facts([
        [t("membridge.canonical"), h("code", {}, id)],
        [t("membridge.primary"), problem ? unknown() : (leader.primary ?? t("membridge.nobody"))],
        [t("membridge.epoch"), leader.primary && unknown(leader.epoch)],
        [t("membridge.since"), leader.primary && moment(leader.issued_at)],
        [t("membridge.until"), leader.primary && moment(leader.expires_at)],
        [t("membridge.memory"), badge(memory(nodes))],
      ]),
    nodes && nodeTable(id, called, leader, nodes, reload),
  ];
}

function nodeTable(id, called, leader, nodes, reload) {
  const other = nodes.find((node) => node.node_id === leader.primary)?.db_sha ?? nodes.find((node) => node.db_sha)?.db_sha;
  return table({
    caption: t("membridge.nodes"),
    rows: nodes,
    rowKey: (node) => node.node_id,
    empty: t("membridge.noNodes"),
    columns: [
      { title: t("membridge.node"), cell: ({ node_id: worker }) => link(worker, "workers", { worker }) },
      { title: t("membridge.role"), cell: ({ role }) => unknown(role, (each) => badge(each, known(`membridge.role.${each}`, each))) },
      { title: t("membridge.observations"), number: true, cell: (node) => count(node.obs_count) },
      { title: t("membridge.sha"), cell: (node) => digest(node.db_sha, other) },
      { title: t("membridge.seen"), cell: (node) => moment(node.last_seen) },
      { title: t("membridge.addresses"), cell: ({ ip_addrs: addresses }) => unknown(addresses?.length ? addresses.join(", ") : null) },
      {
        title: t("app.actions"),
        cell: ({ node_id: node }) => {
          const label = t(node === leader.primary ? "membridge.extend" : "membridge.promote");
          return button(label, () => promote(id, called, leader, node, reload), { title: `${label}: ${node}` });
        },
      },
    ],
  });
}

async function promote(id, called, leader, node, reload) {
  const extends_ = node === leader.primary;
  const before = leader.primary ?? t("membridge.nobody");
  const epoch = leader.epoch ?? t("membridge.unknown");
  const done = await formDialog(t(extends_ ? "membridge.extend" : "membridge.promote"), {
    intro: t(extends_ ? "membridge.extendWhat" : "membridge.promoteWhat", { node, project: called, before, epoch }),
    fields: () => field(t("membridge.term"), select(TERMS.map((seconds) => [String(seconds), duration(seconds)]), "3600", null, { name: "seconds" })),
    submit: (form) => {
      const body = { primary_node_id: node, lease_seconds: Number(form.get("seconds")) };
      return api.post(`/membridge/projects/${id}/leadership/select`, body);
    },
  });
  if (!done) return;
  toast(t("membridge.promoted", { node, epoch: done.epoch ?? t("membridge.unknown") }));
  reload();
}
