// How a machine comes to the fleet: it installs itself with a code that is good once, or somebody tells of it.

import { Problem, api } from "../api.js";
import { h } from "../dom.js";
import { exact } from "../format.js";
import { t } from "../i18n.js";
import { go } from "../router.js";
import { field, formDialog, showSecret, toast } from "../ui.js";
import { path, readLabels } from "./fleet.js";

// --- By itself

export async function install({ session, reload }, name = "") {
	const asked = {};
	const made = await formDialog(t("workers.install"), {
		action: t("workers.makeCode"),
		intro: session.public_url === null && h("strong", { class: "wrong" }, t("workers.noPublicUrl")),
		fields: () => [nameField(name), concurrencyField(), labelsField()],
		submit: (form) => {
			Object.assign(asked, { labels: readLabels(form.get("labels")), most: form.get("max_concurrency") });
			return api.post("/runtime/enrolments", { worker: form.get("name") });
		},
	});
	if (!made) return;
	await showCommand(made, asked, session);
	reload();
}

function showCommand({ worker, code, expires_at: until }, { labels, most }, { public_url: server }) {
	const query = new URLSearchParams([["code", code], ...labels.map((label) => ["label", label]), ["max_concurrency", most]]);
	const base = (server ?? location.origin).replace(/\/+$/, "").replaceAll("'", "%27");
	const command = `curl -fsS '${base}/api/runtime/agent-install-script?${query}' | sh`;
	return showSecret(`${t("workers.install")}: ${worker}`, t("workers.command", { until: exact(until) }), command);
}

// --- By hand

export async function register() {
	const worker = await formDialog(t("workers.register"), {
		fields: () => [
			nameField(""),
			field(t("membridge.url"), h("input", { name: "url", type: "url", maxlength: 2048, autocomplete: "off" }), { hint: t("workers.urlHint") }),
			concurrencyField(),
			labelsField(),
			field("Claude CLI", h("input", { name: "claude_cli", type: "checkbox", checked: true })),
		],
		submit: send,
	});
	if (!worker) return;
	toast(t("workers.done", { action: t("workers.register"), name: worker.id }));
	go("workers", { worker: worker.id });
}

async function send(form) {
	const name = form.get("name");
	const url = form.get("url").trim();
	// The API would change a worker that is known, and what it says of itself.
	if (await isKnown(name)) throw new Problem(409, { detail: t("workers.isKnown", { name }) });
	const capabilities = {
		claude_cli: form.has("claude_cli"),
		max_concurrency: Number(form.get("max_concurrency")),
		labels: readLabels(form.get("labels")),
	};
	return api.post("/runtime/workers", { name, capabilities, ...(url && { url }) });
}

async function isKnown(name) {
	try {
		await api.get(path(name));
		return true;
	} catch (error) {
		if (error instanceof Problem && error.status === 404) return false;
		throw error;
	}
}

function nameField(value) {
	const input = h("input", { name: "name", required: true, maxlength: 128, value, autocomplete: "off", spellcheck: "false", autofocus: true });
	return field(t("keys.name"), input);
}

function concurrencyField() {
	return field(t("workers.most"), h("input", { name: "max_concurrency", type: "number", required: true, min: 1, max: 32, value: 1 }));
}

function labelsField() {
	return field(t("tasks.labels"), h("input", { name: "labels", autocomplete: "off", spellcheck: "false" }), { hint: t("workers.labelsHint") });
}
