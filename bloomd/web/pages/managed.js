// The projects that bloomd manages: make one known, bring it to the nodes and its memory to Membridge, forget it.
// What takes long goes on when nobody waits for it; how far it is, and what came of it, the table of its nodes says.

import { api } from "../api.js";
import { h } from "../dom.js";
import { time } from "../format.js";
import { t } from "../i18n.js";
import { go } from "../router.js";
import { act, badge, button, confirm, facts, field, formDialog, select, table, toast } from "../ui.js";
import { column } from "./plane.js";

// A clone over a slow line may take a node fifteen minutes; the server gives up before this.
const LONG = { timeout: 920_000 };

// So many nodes are named in a question.
const NAMED = 8;

export function managedProject(project, { reload }) {
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
