// An API key for a session. The key is sent once and kept nowhere.

import { Problem, api } from "../api.js";
import { h } from "../dom.js";
import { t } from "../i18n.js";
import { field, problemBox } from "../ui.js";

export function signIn({ expired, signedIn }) {
	const problems = h("div", {});
	const send = h("button", { type: "submit", class: "primary" }, t("app.signIn.action"));
	const key = h("input", { id: "key", name: "key", type: "password", required: true, autocomplete: "current-password", autofocus: true });
	const submit = async (event) => {
		event.preventDefault();
		// What is on the screen may be an earlier rendering of this form, patched.
		const form = event.currentTarget;
		const shown = form.querySelector("[data-problems]");
		form.querySelector("[type=submit]").disabled = true;
		try {
			const session = await api.post("/runtime/session", { key: new FormData(form).get("key").trim() });
			form.reset();
			signedIn(session);
		} catch (error) {
			if (!(error instanceof Problem)) throw error;
			shown.replaceChildren(problemBox(error, null));
			form.elements.key.select();
		} finally {
			form.querySelector("[type=submit]").disabled = false;
		}
	};
	problems.setAttribute("data-problems", "");
	return h(
		"form",
		{ class: "sign-in card", onsubmit: submit, key: "sign-in" },
		h("h1", {}, t("app.signIn.title")),
		expired && h("p", { role: "status" }, t("app.signIn.expired")),
		// For who has a browser keep the key: it wants a name beside it.
		h("input", { class: "hidden", name: "username", autocomplete: "username", value: "bloomd", tabindex: "-1", "aria-hidden": "true" }),
		field(t("app.signIn.key"), key, { hint: t("app.signIn.hint") }),
		problems,
		send,
	);
}
