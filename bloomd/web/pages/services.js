// The supervisor's task tree: each service below the one it belongs to.

import { api } from "../api.js";
import { h } from "../dom.js";
import { time } from "../format.js";
import { known, number, t } from "../i18n.js";
import { act, badge, button, confirm, table, toast } from "../ui.js";

// A page that reaches the daemon through them cannot restart them.
const BY_COMMAND = ["control", "http"];

// While one of these restarts, there is no database.
const DATABASE = ["database", "embedded-postgresql"];

export function services(list, at, reload) {
	return [
		table({
			caption: t("overview.services"),
			rowKey: ({ name }) => name,
			rows: list,
			columns: [
				{ title: t("overview.service"), cell: ({ name }) => named(name) },
				{ title: t("overview.state"), cell: (service) => state(service, at) },
				{ title: t("overview.since"), cell: ({ since }) => time(since * 1000) },
				{ title: t("overview.restarts"), cell: ({ restarts }) => number(restarts), number: true },
				{ title: t("overview.error"), cell: told },
				{ title: t("app.actions"), cell: (service) => !BY_COMMAND.includes(service.name) && restartButton(service, list, reload) },
			],
		}),
		h("p", {}, h("small", {}, t("overview.byCommand"))),
	];
}

function named(path) {
	const depth = path.split("/").length - 1;
	const parent = path.slice(0, path.lastIndexOf("/") + 1);
	return h("span", { class: depth ? `mono below-${Math.min(depth, 3)}` : "mono" }, parent && h("span", { class: "hidden" }, parent), path.slice(parent.length));
}

function state({ state: word, retry_in: retry }, at) {
	return h(
		"div",
		{},
		badge(word),
		retry !== null && h("small", { key: "retry" }, ` ${t("overview.retry")} `, time(Math.ceil(at / 1000 + retry) * 1000)),
	);
}

// What is wrong; and of a service that runs again, what was.
function told({ state: word, last_error: error, cause }) {
	if (word === "running") return error ? h("small", {}, `${t("overview.lastError")} ${error}`) : "";
	return h("span", { class: word === "failed" || error ? "wrong" : null }, error ?? cause);
}

function restartButton({ name }, list, reload) {
	const below = list.filter((each) => each.name.startsWith(`${name}/`)).length;
	const label = [t("overview.restart"), h("span", { class: "hidden" }, ` ${name}`)];
	return button(label, () => restart(name, below, reload));
}

async function restart(name, below, reload) {
	const isDatabase = DATABASE.includes(name);
	const what = [t(isDatabase ? "overview.restartDatabase" : "overview.restartWhat"), below > 0 && ` ${t("overview.restartBelow", { n: below })}`];
	if (!(await confirm(t("overview.restartOf", { name }), what, { action: t("overview.restart"), danger: isDatabase }))) return;
	let service;
	const done = await act(async () => ([service] = (await api.post("/runtime/services/restart", { name })).services));
	if (done) {
		const runs = service.state === "running";
		const why = known(`app.state.${service.state}`, service.state) + (service.last_error ? `: ${service.last_error}` : "");
		toast(runs ? t("overview.restarted", { name }) : t("overview.notRunning", { name, why }), { kind: runs ? "good" : "bad" });
	}
	reload();
}
