// API keys by name: who may do everything.

import { api } from "../api.js";
import { h } from "../dom.js";
import { time } from "../format.js";
import { t } from "../i18n.js";
import { act, button, confirm, field, formDialog, pager, showSecret, table } from "../ui.js";

export const keys = {
	title: () => t("keys.title"),
	types: ["audit"],

	load: ({ params }) => api.list("/runtime/keys", { cursor: params.get("cursor") }),

	render: ({ rows, next }, context) => [
		h("header", { class: "bar" }, h("h1", {}, t("keys.title")), button(t("keys.add"), () => add(context.reload), { kind: "primary" })),
		h("p", {}, t("keys.intro")),
		table({
			caption: t("keys.title"),
			rowKey: (key) => key.name,
			empty: t("keys.none"),
			rows,
			columns: [
				{ title: t("keys.name"), cell: (key) => [key.name, key.name === context.session.actor && h("small", {}, ` ${t("keys.own")}`)] },
				{ title: t("keys.created"), cell: (key) => time(key.created_at) },
				{ title: t("keys.by"), cell: (key) => key.created_by },
				{ title: t("keys.used"), cell: (key) => time(key.last_used_at, t("keys.never")) },
				{ title: t("app.actions"), cell: (key) => button(t("keys.remove"), () => remove(key, rows.length === 1 && !context.params.has("cursor"), context), { kind: "danger", name: `${t("keys.remove")}: ${key.name}` }) },
			],
		}),
		pager("keys", context.params, next),
	],
};

async function add(reload) {
	const made = await formDialog(t("keys.add"), {
		intro: t("keys.addIntro"),
		fields: () => field(t("keys.name"), h("input", { name: "name", required: true, maxlength: 64, autocomplete: "off", autofocus: true }), { hint: t("keys.nameHint") }),
		submit: (form) => api.post("/runtime/keys", { name: form.get("name") }),
	});
	if (!made) return;
	reload();
	await showSecret(t("keys.made", { name: made.name }), t("keys.once"), made.secret);
}

async function remove(key, isOnly, { session, askSession, reload }) {
	let what = t(key.name === session.actor ? "keys.removeOwn" : "keys.removeWhat");
	if (isOnly && (await isLast())) what = h("strong", {}, t("keys.removeLast"));
	if (!(await confirm(t("keys.removeTitle", { name: key.name }), what, { action: t("keys.remove") }))) return;
	await act(() => api.delete(`/runtime/keys/${encodeURIComponent(key.name)}`), ({ authentication }) => t(authentication === "off" ? "keys.removedLast" : "keys.removed", { name: key.name }));
	await askSession();
	reload();
}

// Whether the only key with a name is the only one: none is configured either.
async function isLast() {
	const { settings } = await api.get("/runtime/settings");
	return !settings.find(({ key }) => key === "http.api_key")?.value;
}
