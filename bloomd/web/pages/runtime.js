// Runtime: the connection to Membridge, which is set and tried here; the object store and the backups; and every other
// setting with where it was told.

import { Problem, api, settle } from "../api.js";
import { h } from "../dom.js";
import { time } from "../format.js";
import { t } from "../i18n.js";
import { change } from "../router.js";
import { act, badge, button, card, confirm, facts, field, problemBox, select, table, toast, whatFailed } from "../ui.js";
import { damage, storage } from "./storage.js";

// What can be made here: its name in the API, by its key among the settings.
const MADE_HERE = { "membridge.server_url": "membridge_server_url", "membridge.admin_key": "admin_key" };
const SOURCES = ["database", "option", "environment", "env_file", "file", "preset", "builtIn", "default"];

// Membridge is given time, and more than one try.
const TEST_MS = 120_000;

export const runtime = {
	title: () => t("runtime.title"),
	types: ["audit"],
	// What is still to be moved has no event.
	every: 15_000,

	async load({ params, signal }) {
		const [config, { settings, warnings }, { status }] = await Promise.all([
			api.get("/runtime/config", {}, { signal }),
			api.get("/runtime/settings", {}, { signal }),
			settle({ status: api.get("/runtime/status", {}, { signal }) }),
		]);
		// Without a setting, bloomd uses the Membridge that is built in.
		const inUse = { "membridge.server_url": config.membridge_server_url, "membridge.admin_key": config.admin_key_masked };
		const told = (each) => (each.source === "default" && inUse[each.key] ? { ...each, source: "builtIn", value: inUse[each.key] } : each);
		return { config, settings: settings.map(told), warnings, status };
	},

	// Of what is done here, only some changes a setting, or what is told of the object store and the backups.
	onEvent: (type, entry) => type === "audit" && !/^(config|control|backup)\.|^artifact\.damaged$/.test(entry?.action),

	render: ({ config, settings, warnings, status }, context) => [
		h("header", { class: "bar" }, h("h1", {}, t("runtime.title"))),
		h("div", { class: "pair block" }, proxy(config, settings, context), connection(config, context)),
		stored(status),
		every(settings, warnings, context),
	],
};

// --- Membridge Proxy

function proxy(config, settings, context) {
	const { state, reload, redraw } = context;
	const errors = state.errors ?? {};
	const [url, key] = Object.keys(MADE_HERE).map((name) => settings.find((each) => each.key === name));
	const quiet = { autocomplete: "off", spellcheck: "false" };
	const typed = {
		value: state.url ?? config.membridge_server_url,
		oninput: ({ currentTarget }) => {
			state.url = currentTarget.value;
			redraw();
		},
	};
	const onKey = ({ currentTarget }) => {
		state.hasKey = currentTarget.value !== "";
		redraw();
	};
	return h(
		"form",
		{ class: "card", "aria-labelledby": "proxy", onsubmit: (event) => save(event, config, context) },
		h("h2", { id: "proxy" }, t("runtime.proxy")),
		h("p", {}, t("runtime.order")),
		field(
			t("runtime.url"),
			h("input", { id: "membridge-url", name: "url", type: "url", placeholder: "http://127.0.0.1:8000", ...typed, ...quiet }),
			{ error: errors.membridge_server_url },
		),
		origin(url, config, reload),
		field(
			t("runtime.key"),
			h("input", { id: "membridge-key", name: "key", type: "password", placeholder: config.admin_key_masked || t("runtime.noKey"), oninput: onKey, ...quiet }),
			{ hint: t("runtime.keyHint"), error: errors.admin_key },
		),
		origin(key, config, reload),
		state.problem && problemBox(state.problem, null),
		h("div", { class: "actions" }, h("button", { type: "submit", class: "primary" }, t("runtime.save"))),
	);
}

// Where a value comes from, and how to have it from elsewhere.
function origin({ key, source, where }, { stored }, reload) {
	const name = MADE_HERE[key];
	const here = stored.includes(name);
	return h(
		"p",
		{ class: "origin", key: `origin-${name}` },
		badge("plain", t(`runtime.sources.${source}`)),
		" ",
		h("small", {}, t(`runtime.from.${source === "env_file" ? "file" : source}`, { where })),
		here && [" ", button([t("runtime.unset"), h("span", { class: "hidden" }, ` ${key}`)], () => unset(key, reload), { kind: "danger" })],
		here && source !== "database" && h("small", { class: "wrong" }, ` ${t("runtime.notUsed")}`),
	);
}

async function save(event, config, { state, reload, redraw }) {
	event.preventDefault();
	const form = event.currentTarget;
	const [url, key] = [form.elements.url.value.trim(), form.elements.key.value];
	const body = { ...(url !== config.membridge_server_url && { membridge_server_url: url }), ...(key && { admin_key: key }) };
	if (Object.keys(body).length === 0) return toast(t("runtime.same"));
	const send = form.querySelector("[type=submit]");
	send.disabled = true;
	try {
		await api.post("/runtime/config", body);
		form.elements.key.value = "";
		Object.assign(state, { url: undefined, hasKey: false, errors: {}, problem: null, test: null });
		toast(t("runtime.saved"));
		await reload();
	} catch (error) {
		if (!(error instanceof Problem)) throw error;
		const errors = Object.fromEntries((error.errors ?? []).map(({ field, message }) => [field, message]));
		Object.assign(state, { errors, problem: Object.keys(errors).length ? null : error });
		redraw();
		form.querySelector("[aria-invalid]")?.focus();
	} finally {
		send.disabled = false;
	}
}

async function unset(key, reload) {
	if (!(await confirm(`${t("runtime.unset")}: ${key}`, t("runtime.unsetWhat"), { action: t("runtime.unset") }))) return;
	if (!(await act(() => api.delete(`/runtime/config/${MADE_HERE[key]}`), t("runtime.unsetDone")))) return;
	await reload();
	// The button is gone, with the focus that it had.
	document.getElementById("membridge-url")?.focus();
}

// --- Its test

function connection(config, { state, reload, redraw }) {
	const test = async () => {
		try {
			state.test = await api.post("/runtime/test-connection", {}, { timeout: TEST_MS });
		} catch (error) {
			if (!(error instanceof Problem)) throw error;
			state.test = { connected: false, error: `${whatFailed(error)} ${error.message}` };
		}
		redraw();
		reload();
	};
	const last = config.last_test;
	const saved = config.membridge_server_url;
	const isTyped = state.hasKey || (state.url ?? saved).trim() !== saved;
	return h(
		"section",
		{ class: "card", "aria-labelledby": "connection" },
		h("h2", { id: "connection" }, t("runtime.connection")),
		h("p", {}, t("runtime.testWhat")),
		h(
			"p",
			{},
			t("runtime.lastTest"),
			" ",
			last === null ? t("runtime.neverTested") : [time(last), " ", badge(config.connected ? "ok" : "failed", t(`runtime.connected.${config.connected}`))],
		),
		button(t("runtime.test"), test, { disabled: !saved || isTyped, kind: "primary" }),
		isTyped && h("small", {}, ` ${t("runtime.saveFirst")}`),
		h("div", { role: "status" }, state.test && answer(state.test)),
	);
}

function answer({ connected, error, health }) {
	if (!connected) return h("div", { class: "problem" }, h("strong", {}, t("runtime.failed")), h("p", {}, error));
	const said = (name) => plain(health?.[name] ?? t("runtime.notSaid"));
	return [
		h("p", {}, badge("ok", t("runtime.connected.true"))),
		facts(["status", "service", "version", "projects", "agents"].map((name) => [t(`runtime.health.${name}`), said(name)])),
	];
}

// --- What holds what was made

function stored(status) {
	if (status instanceof Problem) return problemBox(status);
	const { objects, backup } = status;
	return (objects || backup) && [damage(status), card(t("runtime.storage"), facts(storage(status)))];
}

// --- All settings

function every(settings, warnings, { params }) {
	const [q, source] = ["q", "source"].map((name) => params.get(name) ?? "");
	const search = ({ currentTarget }) => change({ q: currentTarget.value }, { replace: true });
	const fits = ({ key, value, source: its, where }) =>
		(!source || its === source) && `${key} ${plain(value)} ${where ?? ""}`.toLowerCase().includes(q.toLowerCase());
	const rows = settings.filter(fits);
	const sources = SOURCES.filter((each) => settings.some((one) => one.source === each) || each === source);
	const choices = [["", t("app.all")], ...sources.map((each) => [each, t(`runtime.sources.${each}`)])];
	return [
		h("h2", { class: "over" }, t("runtime.settings")),
		h("p", {}, t("runtime.settingsWhat")),
		warnings.length > 0 && h("ul", { key: "warnings", class: "warnings" }, warnings.map((warning) => h("li", {}, warning))),
		h(
			"form",
			{ class: "filters", role: "search", "aria-label": t("runtime.settings"), onsubmit: (event) => event.preventDefault() },
			field(t("runtime.search"), h("input", { id: "settings-search", type: "search", value: q, oninput: search })),
			field(
				t("runtime.source"),
				select(choices, source, (next) => change({ source: next }), { id: "settings-source" }),
			),
			h("small", { role: "status" }, t("runtime.shown", { n: rows.length })),
		),
		table({
			caption: t("runtime.settings"),
			rowKey: ({ key }) => key,
			empty: t("runtime.noneFits"),
			rows,
			columns: [
				{ title: t("runtime.name"), cell: ({ key }) => h("code", { class: "whole" }, key) },
				{ title: t("runtime.value"), cell: ({ value }) => h("span", { class: "mono" }, plain(value)) },
				{ title: t("runtime.source"), cell: told },
			],
		}),
	];
}

function told({ source, where }) {
	const word = t(`runtime.sources.${source}`);
	return h("div", {}, source === "default" ? h("small", {}, word) : word, where && h("div", {}, h("small", { class: "mono" }, where)));
}

function plain(value) {
	if (value === null || (Array.isArray(value) && value.length === 0)) return "–";
	if (Array.isArray(value)) return value.map(plain).join(", ");
	return typeof value === "object" ? JSON.stringify(value) : String(value);
}
