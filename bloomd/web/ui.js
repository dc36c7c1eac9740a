// What every page is made of. All of it can be used with the keyboard and is told to who listens instead of looking.

import { Problem } from "./api.js";
import { h } from "./dom.js";
import { known, t } from "./i18n.js";
import { href } from "./router.js";

// A button that does something: it is busy, and cannot be pressed again, until that is done. Of several that look the same
// each has a `name` of its own, which begins with the label.
export function button(label, action, { kind = "", disabled = false, title, key, name } = {}) {
	return h(
		"button",
		{
			type: "button",
			class: kind || null,
			title,
			key,
			disabled,
			"aria-label": name,
			onclick: async ({ currentTarget }) => {
				currentTarget.setAttribute("aria-busy", "true");
				currentTarget.disabled = true;
				try {
					await action();
				} finally {
					currentTarget.removeAttribute("aria-busy");
					currentTarget.disabled = false;
					// A browser takes the focus from what is disabled.
					if (document.activeElement === document.body) currentTarget.focus({ preventScroll: true });
				}
			},
		},
		label,
	);
}

export function link(label, page, params, attributes = {}) {
	return h("a", { href: href(page, params), ...attributes }, label);
}

// A word for a state, with a colour and a mark of its own: colour alone tells nothing to many.
const MOODS = {
	good: ["ok", "up", "online", "completed", "success", "running", "live", "cloned", "synced", "active", "done", "equal"],
	bad: ["down", "failed", "dead", "error", "offline", "expired", "deadline"],
	warn: ["degraded", "waiting", "backoff", "stopping", "draining", "cordoned", "reconnecting", "cancelled", "paused", "polling", "differs", "lost"],
};

export function badge(state, label = known(`app.state.${state}`, state)) {
	const mood = Object.keys(MOODS).find((each) => MOODS[each].includes(state)) ?? "plain";
	return h("span", { class: `badge ${mood}`, "data-state": state }, label);
}

// What a problem is, and what to do about it, where the thing itself would be. `retry`: what trying again is; null in a
// form, where it is to send it once more. `what` and `advice` are better words than those for its status.
export function problemBox(problem, retry, { what = whatFailed(problem), advice = whatToDo(problem, retry === null) } = {}) {
	return h(
		"div",
		{ class: "problem", role: "alert" },
		h("strong", {}, what),
		h("p", { lang: "en" }, problem.message),
		problem.errors?.length > 1 && h("ul", { lang: "en" }, problem.errors.map(({ field, message }) => h("li", {}, `${field}: ${message}`))),
		h("p", {}, advice),
		retry && mayPass(problem.status) && button(t("app.again"), retry),
	);
}

export function whatFailed({ status, type }) {
	if (status === 0) return t(type === "timeout" ? "app.failed.timeout" : "app.failed.unreachable");
	return known(`app.failed.${status}`, t("app.failed.other", { status: String(status) }));
}

function whatToDo({ status }, isForm) {
	if (isForm && mayPass(status)) return t("app.advice.later"); // nothing sends it by itself
	return known(`app.advice.${status}`, status >= 500 ? t("app.advice.server") : t("app.advice.request"));
}

function mayPass(status) {
	return status === 0 || status === 429 || status >= 500;
}

// A field of a form with its label, a hint below, and the error that the server has said about it.
export function field(label, input, { hint, error } = {}) {
	const id = input.id || (input.id = `field-${Math.random().toString(36).slice(2)}`);
	const told = [hint && `${id}-hint`, error && `${id}-error`].filter(Boolean).join(" ");
	if (told) input.setAttribute("aria-describedby", told);
	if (error) input.setAttribute("aria-invalid", "true");
	return h(
		"div",
		{ class: "field" },
		h("label", { for: id }, label),
		input,
		hint && h("small", { id: `${id}-hint` }, hint),
		error && h("small", { id: `${id}-error`, class: "wrong" }, error),
	);
}

export function select(options, value, onchange, attributes = {}) {
	return h(
		"select",
		{ onchange: ({ currentTarget }) => onchange?.(currentTarget.value), ...attributes },
		options.map(([key, label]) => h("option", { value: key, selected: key === (value ?? "") }, label)),
	);
}

// A list as a table, which a narrow screen shows as cards. columns: [{title, cell(row), number}]; rows have a key.
export function table({ caption, columns, rows, rowKey = (row) => row.id, empty, current }) {
	if (rows.length === 0) return h("p", { class: "empty", key: caption }, empty ?? t("app.nothing"));
	return h(
		"div",
		{ class: "scroll", key: caption, tabindex: "0", role: "region", "aria-label": caption },
		h(
			"table",
			{},
			h("caption", { class: "hidden" }, caption),
			h("thead", {}, h("tr", {}, columns.map(({ title, number }) => h("th", { scope: "col", class: number && "number" }, title)))),
			h(
				"tbody",
				{},
				rows.map((row) =>
					h(
						"tr",
						{ key: rowKey(row), "aria-current": current?.(row) ? "true" : null },
						columns.map(({ title, cell, number }) =>
							h("td", { "data-label": typeof title === "string" ? title : null, class: number && "number" }, whole(cell(row))),
						),
					),
				),
			),
		),
	);
}

// In a card what is in a cell stands beside its title, and so has to be one thing.
function whole(content) {
	return Array.isArray(content) ? h("div", {}, content) : content;
}

// The way on in a list: to the next page, and back to the first.
export function pager(page, params, next) {
	const turned = new URLSearchParams(params);
	const first = new URLSearchParams(params);
	first.delete("cursor");
	if (next) turned.set("cursor", next);
	return h(
		"nav",
		{ class: "pager", "aria-label": t("app.pages") },
		params.get("cursor") && link(t("app.first"), page, first),
		next && link(t("app.next"), page, turned, { rel: "next" }),
	);
}

// Names and values, one below the other.
export function facts(entries) {
	const shown = entries.filter(([, value]) => ![null, undefined, false, ""].includes(value));
	return h("dl", { class: "facts" }, shown.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

export function card(title, ...content) {
	return h("section", { class: "card" }, title && h("h2", {}, title), content);
}

export function copyButton(text) {
	return button(t("app.copy"), async () => {
		toast((await copy(text)) ? t("app.copied") : t("app.notCopied"));
	});
}

// Where the page came without TLS from another machine, a browser has no clipboard for it, only the old way of a selection.
async function copy(text) {
	if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
	const source = h("textarea", { class: "hidden", "aria-hidden": "true" }, text);
	([...document.querySelectorAll("dialog")].at(-1) ?? document.body).append(source);
	source.select();
	const copied = document.execCommand("copy");
	source.remove();
	return copied;
}

// A sentence that comes and goes, and is read out quietly.
export function toast(text, { kind = "good" } = {}) {
	const place = document.getElementById("toasts");
	const shown = h("div", { class: `toast ${kind}` }, text);
	place.append(shown);
	setTimeout(() => shown.remove(), kind === "good" ? 4000 : 12_000);
}

// A dialog on top of the page. `content(close)` gives what is in it; the promise has what was closed with (undefined: left).
export function dialog(title, content) {
	return new Promise((resolve) => {
		const before = document.activeElement;
		const id = `dialog-${Math.random().toString(36).slice(2)}`;
		const shown = h("dialog", { "aria-labelledby": id });
		const close = (value) => {
			shown.close();
			shown.remove();
			before?.isConnected && before.focus();
			resolve(value);
		};
		shown.onclose = () => shown.isConnected && !shown.hidden && close();
		shown.append(h("h2", { id }, title), ...[content(close)].flat());
		document.body.append(shown);
		shown.showModal();
	});
}

// Ask before something that cannot be undone, saying what it will do. True when it shall be done.
export async function confirm(title, what, { action, danger = true } = {}) {
	return Boolean(
		await dialog(title, (close) => [
			h("div", { class: "what" }, what),
			h(
				"div",
				{ class: "actions" },
				h("button", { type: "button", onclick: () => close(false), autofocus: true }, t("app.cancel")),
				h("button", { type: "button", class: danger ? "danger" : "primary", onclick: () => close(true) }, action ?? title.replace("?", "")),
			),
		]),
	);
}

// A form in a dialog. `fields()` gives its fields; `submit(form)` sends them and is tried again as long as the server
// refuses. The promise has what `submit` gave (undefined: left).
export function formDialog(title, { fields, submit, action, intro }) {
	return dialog(title, (close) => {
		const problems = h("div", {});
		const body = h("div", { class: "fields" }, fields());
		const send = h("button", { type: "submit", class: "primary" }, action ?? title);
		const form = h(
			"form",
			{
				onsubmit: async (event) => {
					event.preventDefault();
					send.disabled = true;
					try {
						close(await submit(new FormData(form)));
					} catch (error) {
						if (!(error instanceof Problem)) throw error;
						if (error.status === 401) return; // what was written is there again after the sign-in
						problems.replaceChildren(problemBox(error, null));
						problems.scrollIntoView({ block: "nearest" });
					} finally {
						send.disabled = false;
					}
				},
			},
			intro && h("div", { class: "what" }, intro),
			body,
			problems,
			h("div", { class: "actions" }, h("button", { type: "button", onclick: () => close() }, t("app.cancel")), send),
		);
		return form;
	});
}

// Do something to the server and say how it went: the words for success, or the problem, which `failed` may have words for.
// True when it is done.
export async function act(action, done, failed) {
	try {
		const answer = await action();
		if (done) toast(typeof done === "function" ? done(answer) : done);
		return true;
	} catch (error) {
		if (!(error instanceof Problem)) throw error;
		if (error.status !== 401) toast(`${failed ?? whatFailed(error)} ${error.message}`, { kind: "bad" });
		return false;
	}
}

// A secret that is shown this one time.
export function showSecret(title, explanation, secret) {
	return dialog(title, (close) => [
		h("p", {}, explanation),
		h("pre", { class: "secret", tabindex: "0" }, secret),
		h("div", { class: "actions" }, copyButton(secret), h("button", { type: "button", class: "primary", onclick: () => close() }, t("app.close"))),
	]);
}
