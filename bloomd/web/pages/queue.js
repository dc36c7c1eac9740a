// What goes into the queue, and whether anything comes out of it.

import { api } from "../api.js";
import { h } from "../dom.js";
import { time } from "../format.js";
import { t } from "../i18n.js";
import { go } from "../router.js";
import { act, button, field, formDialog, select, toast } from "../ui.js";
import { readLabels } from "./fleet.js";

export async function create() {
	const input = (name, attributes) => field(t(`tasks.${name}`), h("input", { name, autocomplete: "off", ...attributes }));
	const whole = (name, value, min, max) => input(name, { type: "number", value, min, max, required: true });
	const names = h("datalist", { id: "worker-names" });
	// Only an offer: without it a name is typed.
	api.get("/runtime/workers").then((all) => names.append(...all.map(({ id }) => h("option", { value: id }))), () => {});
	const task = await formDialog(t("tasks.create"), {
		fields: () => [
			h("div", { class: "wide" }, field(t("tasks.prompt"), h("textarea", { name: "prompt", required: true, autofocus: true }))),
			input("agent_slug", { maxlength: 512 }),
			input("context_id", { maxlength: 512 }),
			field(t("tasks.labels"), h("input", { name: "labels", autocomplete: "off" }), { hint: t("workers.labelsHint") }),
			input("pinned_worker_id", { maxlength: 128, list: names.id }),
			names,
			field(t("tasks.desired_format"), select([["text", t("tasks.text")], ["json", "JSON"]], "text", null, { name: "desired_format" })),
			whole("priority", 0, 0, 9),
			whole("max_attempts", 3, 1, 10),
			whole("timeout_sec", 120, 1, 3600),
			whole("budget", 0, 0),
			input("not_before", { type: "datetime-local" }),
		],
		submit: (form) => api.post("/runtime/llm-tasks", taskOf(form)),
	});
	if (!task) return;
	toast(t("tasks.created"));
	go("tasks", { task: task.id });
}

function taskOf(form) {
	const text = (name) => form.get(name).trim();
	const count = (name) => Number(form.get(name));
	return {
		prompt: form.get("prompt"),
		agent_slug: text("agent_slug"),
		context_id: text("context_id"),
		labels: readLabels(form.get("labels")),
		pinned_worker_id: text("pinned_worker_id") || null,
		desired_format: form.get("desired_format"),
		priority: count("priority"),
		max_attempts: count("max_attempts"),
		policy: { timeout_sec: count("timeout_sec"), budget: count("budget") },
		not_before: momentOf(form, "not_before"),
	};
}

// What was said by this browser's clock and calendar, in ms.
function momentOf(form, name) {
	return form.get(name) ? new Date(form.get(name)).getTime() : null;
}

export function pauseBanner({ paused, until, reason }) {
	if (!paused) return null;
	const how = until === null ? t("tasks.pausedOpen") : [t("tasks.pausedUntil"), " ", time(until)];
	return h("p", { class: "paused", key: "paused", role: "status" }, how, reason && `: ${reason}`);
}

export function pauseButton({ paused }, reload) {
	return paused ? button(t("tasks.resume"), () => resume(reload), { key: "resume" }) : button(t("tasks.pause"), () => pause(reload), { key: "pause" });
}

async function resume(reload) {
	await act(() => api.post("/runtime/queue", { paused: false }), t("tasks.resumed"));
	reload();
}

async function pause(reload) {
	const state = await formDialog(t("tasks.pause"), {
		intro: t("tasks.pauseWhat"),
		fields: () => [
			field(t("tasks.until"), h("input", { name: "until", type: "datetime-local" }), { hint: t("tasks.untilHint") }),
			field(t("tasks.reason"), h("input", { name: "reason", maxlength: 1000, autocomplete: "off" })),
		],
		submit: (form) => api.post("/runtime/queue", { paused: true, until: momentOf(form, "until"), reason: form.get("reason").trim() || null }),
	});
	if (!state) return;
	toast(t("tasks.paused"));
	reload();
}
