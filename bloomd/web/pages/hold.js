// What is done to a worker: held back, taken away, or its agent told to do something. Each asks first and says what follows.

import { Problem, api } from "../api.js";
import { h } from "../dom.js";
import { t } from "../i18n.js";
import { go } from "../router.js";
import { act, confirm, field, formDialog, toast } from "../ui.js";
import { path } from "./fleet.js";

const ROUTES = { cordon: "cordon", uncordon: "uncordon", drain: "drain", restart: "agent-restart", uninstall: "agent-uninstall" };

// The server waits a little less for an agent; one that updates itself fetches something.
const STEP_MS = 70_000;
const UPDATE_MS = 310_000;

export function word(verb) {
	return t(verb === "remove" ? "keys.remove" : `workers.${verb}`);
}

// Ask, then do it, and say that it is done.
export async function step(verb, worker, reload) {
	if (verb === "remove") return remove(worker, reload);
	const action = word(verb);
	const { id: name, active_leases: n } = worker;
	const title = `${action}: ${name}?`;
	const what = () => [h("p", {}, t(`workers.${verb}What`)), n > 0 && h("p", {}, h("strong", {}, t("workers.holds", { n })))];
	const done = (answer) => [t("workers.done", { action, name }), answer.detail].filter(Boolean).join(" ");
	if (verb === "update") {
		const told = await update(worker, title, action, what());
		if (told) toast(done(told));
	} // To give it tasks again harms nobody.
	else if (verb === "uncordon" || (await confirm(title, what(), { action, danger: verb === "uninstall" })))
		await act(() => api.post(`${path(name)}/${ROUTES[verb]}`, {}, { timeout: STEP_MS }), done);
	reload();
}

function update({ id }, title, action, intro) {
	const input = h("input", { name: "repo_url", maxlength: 2048, autocomplete: "off", spellcheck: "false" });
	return formDialog(title, {
		action,
		intro,
		fields: () => field(t("membridge.repository"), input, { hint: t("workers.repositoryHint") }),
		submit: () => api.post(`${path(id)}/agent-update`, { repo_url: input.value.trim() || null }, { timeout: UPDATE_MS }),
	});
}

// First as if it held nothing. The server knows better than this page whether it does: then with the number, once more.
async function remove(worker, reload) {
	const action = word("remove");
	if (!(await confirm(`${action}: ${worker.id}?`, t("workers.removeWhat"), { action }))) return;
	try {
		await api.delete(path(worker.id));
	} catch (error) {
		if (error instanceof Problem && error.status === 409) return removeBusy(worker, reload);
		await act(() => Promise.reject(error));
		return reload();
	}
	left(worker.id);
}

async function removeBusy({ id, active_leases: before }, reload) {
	let n = before;
	await act(async () => ({ active_leases: n } = await api.get(path(id))));
	const action = t("workers.force");
	const what = [h("p", {}, h("strong", {}, t("workers.holds", { n }))), h("p", {}, t("workers.forceWhat"))];
	if (!(await confirm(`${action}: ${id}?`, what, { action }))) return;
	if (await act(() => api.delete(path(id), { force: "true" }))) left(id);
	else reload();
}

function left(name) {
	toast(t("workers.done", { action: word("remove"), name }));
	go("workers");
}
