// The projects that bloomd manages: make one known, bring it to the nodes and its memory to Membridge, forget it.
// What takes long goes on when nobody waits for it; how far it is, the nodes' states say.

import { api } from "../api.js";
import { h } from "../dom.js";
import { time } from "../format.js";
import { t } from "../i18n.js";
import { go } from "../router.js";
import { act, badge, button, card, confirm, facts, field, formDialog, select, table, toast } from "../ui.js";

// A clone over a slow line may take a node fifteen minutes; the server gives up before this.
const LONG = { timeout: 920_000 };

// So many nodes are named in a question.
const NAMED = 8;

export function managedCard(project, context) {
  if (!project) return card(t("membridge.managedHere"), h("p", { class: "empty" }, t("membridge.notManaged")));
  const { id, nodes } = project;
  const results = context.state.results?.[id];
  return card(
    t("membridge.managedHere"),
    facts([
      [t("membridge.state"), badge(project.clone_status)],
      [t("membridge.repository"), project.repo_url],
      [t("membridge.path"), project.target_path],
      [t("membridge.primary"), project.primary_node_id ?? "–"],
      [t("membridge.created"), time(project.created_at)],
      [t("membridge.updated"), time(project.updated_at)],
    ]),
    project.error_message && h("p", { class: "wrong" }, project.error_message),
    h(
      "div",
      { class: "buttons" },
      button(t("membridge.clone"), () => clone(project, context)),
      button(t("membridge.propagate"), () => propagate(project, context)),
      button(t("membridge.sync"), () => sync(project, context)),
      button(t("membridge.forget"), () => forget(project), { kind: "danger" }),
    ),
    results && resultTable(results),
    h("h3", {}, t("membridge.nodes")),
    table({
      caption: `${t("membridge.managedHere")}: ${t("membridge.nodes")}`,
      rows: nodes,
      empty: t("membridge.nowhere"),
      columns: [
        { title: t("membridge.node"), cell: (node) => node.node_id },
        { title: t("membridge.state"), cell: (node) => badge(node.clone_status) },
        { title: t("membridge.path"), cell: (node) => node.repo_path ?? "–" },
        { title: t("membridge.synced"), cell: (node) => time(node.last_sync_at) },
        { title: t("membridge.error"), cell: (node) => node.error_message ?? "–" },
      ],
    }),
  );
}

function resultTable({ title, rows }) {
  return [
    h("h3", {}, title),
    table({
      caption: title,
      rows,
      rowKey: ({ node }) => node,
      columns: [
        { title: t("membridge.node"), cell: ({ node }) => node },
        { title: t("membridge.state"), cell: ({ ok }) => badge(ok ? "success" : "failed") },
        { title: t("membridge.detail"), cell: ({ error, result }) => error ?? [result?.detail, result?.path].filter(Boolean).join(" · ") },
      ],
    }),
  ];
}

export async function create({ reload }) {
  const text = (name, attributes, more) => field(t(`membridge.${name}`), h("input", { name, autocomplete: "off", ...attributes }), more);
  const made = await formDialog(t("membridge.create"), {
    intro: t("membridge.createIntro"),
    fields: () => [
      text("name", { required: true, maxlength: 256, autofocus: true }, { hint: t("membridge.nameHint") }),
      text("repository", { required: true, maxlength: 2048, placeholder: "https://git.example.org/team/project.git" }, { hint: t("membridge.repositoryHint") }),
      text("path", { maxlength: 1024 }, { hint: t("membridge.pathHint") }),
    ],
    submit: (form) =>
      api.post("/runtime/projects", {
        name: form.get("name"),
        repo_url: form.get("repository"),
        target_path: form.get("path") || undefined,
      }),
  });
  if (!made) return;
  toast(t("membridge.made", { name: made.name }));
  reload();
  go("membridge", { managed: made.id });
}

// The online workers that can be asked.
async function reachable() {
  return (await api.get("/runtime/workers", { status: "online", limit: 1000 })).filter((worker) => worker.url);
}

// A node by its name; those that are online are offered.
async function nodeField() {
  const workers = await reachable().catch(() => []);
  return () => [
    field(t("membridge.node"), h("input", { name: "node", list: "nodes", autocomplete: "off", maxlength: 128 }), { hint: t("membridge.nodeHint") }),
    h("datalist", { id: "nodes" }, workers.map(({ id }) => h("option", { value: id }))),
  ];
}

async function clone(project, context) {
  const fields = await nodeField();
  const asked = await formDialog(t("membridge.clone"), {
    intro: t("membridge.cloneWhat", { project: project.name }),
    fields,
    submit: (form) => ({ node_id: form.get("node") || undefined }),
  });
  if (asked) await run(project, "clone", asked, context);
}

async function sync(project, context) {
  const node = await nodeField();
  const directions = ["push", "pull"].map((each) => [each, t(`membridge.${each}`)]);
  const asked = await formDialog(t("membridge.sync"), {
    intro: t("membridge.syncWhat", { project: project.name }),
    fields: () => [field(t("membridge.direction"), select(directions, "push", null, { name: "direction" })), node()],
    submit: (form) => ({ direction: form.get("direction"), node_id: form.get("node") || undefined }),
  });
  if (asked) await run(project, "sync-memory", asked, context);
}

async function propagate(project, context) {
  let workers;
  const primary = project.primary_node_id;
  const others = ({ id, node_id: node }) => primary === null || ![id, node].includes(primary);
  if (!(await act(async () => (workers = (await reachable()).filter(others))))) return;
  const n = workers.length;
  if (n === 0) return toast(t("membridge.nothing"), { kind: "bad" });
  const names = workers.slice(0, NAMED).map(({ id }) => id).join(", ");
  const what = t("membridge.propagateWhat", { n, project: project.name, nodes: n > NAMED ? `${names}, …` : names });
  if (await confirm(t("membridge.propagate"), what, { danger: false })) await run(project, "propagate", {}, context);
}

async function run(project, what, body, { state, reload }) {
  toast(t("membridge.started"));
  let answer;
  await act(async () => (answer = await api.post(`/runtime/projects/${project.id}/${what}`, body, LONG)));
  if (answer) {
    const rows = answer.results ?? [{ node: answer.node, ok: true, result: answer.result }];
    const done = rows.filter(({ ok }) => ok).length;
    const title = t("membridge.result", { what: t(`membridge.${what === "sync-memory" ? body.direction : what}`), done, n: rows.length });
    state.results = { ...state.results, [project.id]: { title, rows } };
    toast(title, { kind: done === rows.length ? "good" : "bad" });
  }
  reload();
}

async function forget(project) {
  const what = t("membridge.forgetWhat", { n: project.nodes.length });
  if (!(await confirm(t("membridge.forgetTitle", { name: project.name }), what, { action: t("membridge.forget") }))) return;
  if (await act(() => api.delete(`/runtime/projects/${project.id}`), t("membridge.forgotten", { name: project.name }))) go("membridge");
}
