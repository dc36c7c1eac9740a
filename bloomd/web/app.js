// The frame around every page: who is signed in, which page the address names, and when to look at the server again.
//
//   address ─▶ load (ask the API) ─▶ render (what shall be shown) ─▶ patch (change what differs)
//      ▲          ▲
//      │          └── an event of a type that the page names, an action, the net of polling
//      └── links, filters, Back
//
// A page is {title(), types, load(context), render(data, context)}. `load` throws a Problem when it has nothing to show;
// then what was shown before stays, marked as old. The context has: params (of the address), session, askSession(),
// reload(), redraw(), signal, and state (the page's own, while one stays on it). onEvent(type, entry, context) gives true
// when it has dealt with an event, so that nothing is loaded.

import { Problem, api, onUnauthorized } from "./api.js";
import { h, patch } from "./dom.js";
import { renewTimes } from "./format.js";
import { LANGUAGES, choose, language, t } from "./i18n.js";
import { Live } from "./live.js";
import { audit } from "./pages/audit.js";
import { keys } from "./pages/keys.js";
import { membridge } from "./pages/membridge.js";
import { overview } from "./pages/overview.js";
import { runtime } from "./pages/runtime.js";
import { signIn } from "./pages/signin.js";
import { tasks } from "./pages/tasks.js";
import { workers } from "./pages/workers.js";
import { go, here, href } from "./router.js";
import { badge, button, problemBox, select, toast, whatFailed } from "./ui.js";

const PAGES = { overview, tasks, workers, runtime, membridge, audit, keys };

// A change is shown so soon after it, together with all that change meanwhile ...
const SOON_MS = 150;
// ... and the next ones not before this, however many there are.
const REST_MS = 500;
// The server's counts may be a second old: what was looked at sooner after a change is looked at once more.
const SETTLE_MS = 1200;

// Without events a page is asked so often; and with events now and then as well, should one have been missed.
const POLL_MS = 5000;
const NET_MS = 60_000;

// What of the address says that a page is about one thing: then it begins at its top.
const ONE_OF_MANY = ["task", "worker", "project", "managed"];

// Where one was when one left an address, to be there again when one comes back.
const left = new Map();

const state = { session: null, page: null, params: null, data: null, problem: null, loadedAt: 0, context: null };
let visit = new AbortController();
let paused = false;
let due = 0;
let dueAt = 0;
let changedAt = 0;

const live = new Live({
	onEvent: (said, entry) => {
		const page = PAGES[state.page];
		// Without a database there is next to nothing to be had, and with it again there is all.
		const type = said === "service" && entry.name === "database" ? "reset" : said;
		if (!page || !(type === "reset" || page.types.includes(type))) return;
		if (page.onEvent?.(type, entry, state.context) === true) return;
		changedAt = Date.now();
		schedule(SOON_MS);
	},
	onState: frame,
	onClosed: () => askSession().catch(() => {}),
});

// --- What is asked, and when

function schedule(ms) {
	const at = Math.max(Date.now() + ms, state.loadedAt + REST_MS);
	if (paused || document.hidden || (due && dueAt <= at)) return;
	clearTimeout(due);
	dueAt = at;
	due = setTimeout(load, at - Date.now());
}

async function load() {
	clearTimeout(due);
	due = 0;
	const context = state.context;
	if (!context) return;
	const began = (state.loadedAt = Date.now());
	if (began < changedAt + SETTLE_MS) schedule(SETTLE_MS);
	try {
		const data = await PAGES[state.page].load(context);
		// Of two at once the earlier may come last.
		if (context !== state.context || began < state.shownAt) return;
		Object.assign(state, { data, of: context.params, problem: null, shownAt: began });
	} catch (error) {
		if (context !== state.context || context.signal.aborted) return;
		if (!(error instanceof Problem)) throw error;
		if (error.status === 401) return;
		state.problem = error;
	}
	draw();
}

async function open() {
	const { page, params } = here();
	if (!state.session) return showSignIn();
	if (!Object.hasOwn(PAGES, page)) return go("overview");
	visit.abort();
	visit = new AbortController();
	const stays = page === state.page;
	Object.assign(state, { page, params, problem: null, data: stays ? state.data : null });
	const own = stays ? state.context.state : {};
	state.context = { params, session: state.session, signal: visit.signal, state: own, askSession, reload: load, redraw: draw };
	const place = [page, ...ONE_OF_MANY.map((name) => params.get(name))].join();
	const moves = place !== state.place;
	state.place = place;
	// Only an address that one has come back to has been seen.
	const isBack = history.state?.seen;
	const before = isBack && left.get(location.hash);
	if (isBack) document.activeElement.removeAttribute("value"); // also a field that has the focus is rendered anew
	history.replaceState({ seen: true }, "");
	const main = document.getElementById("main");
	if (!stays) {
		draw();
		main.focus({ preventScroll: true });
		scrollTo(0, 0);
	}
	await load();
	if (!moves) return;
	scrollTo(0, before?.top ?? 0);
	if (before?.link) main.querySelector(`a[href="${CSS.escape(before.link)}"]`)?.focus({ preventScroll: true });
}

setInterval(() => {
	renewTimes();
	if (document.hidden || paused || !state.context) return;
	const patience = live.state === "live" && !state.problem ? NET_MS : POLL_MS;
	if (Date.now() - state.loadedAt >= Math.min(patience, PAGES[state.page].every ?? patience)) load();
}, 1000);

// --- Who is signed in

async function askSession() {
	const session = await api.get("/runtime/session");
	if (session.actor === null) return signedOut(state.session !== null);
	state.session = session;
	if (state.context) state.context.session = session;
	frame();
}

function signedOut(expired) {
	Object.assign(state, { session: null, page: null, context: null, data: null, problem: null, expired });
	visit.abort();
	live.stop();
	// A new secret is shown this one time, also to whom it has just shut out; and what was being written waits.
	for (const each of document.querySelectorAll("dialog:not(:has(.secret))")) {
		each.hidden = expired && each.querySelector("form") !== null;
		each.close();
	}
	showSignIn();
}

function showSignIn() {
	frame();
	patch(
		document.getElementById("main"),
		signIn({
			expired: state.expired,
			signedIn: (session) => {
				Object.assign(state, { session, expired: false });
				begin();
			},
		}),
	);
}

function begin() {
	frame();
	live.start();
	for (const each of document.querySelectorAll("dialog[hidden]")) {
		each.hidden = false;
		each.showModal();
	}
	return open();
}

async function signOut() {
	try {
		await api.delete("/runtime/session");
	} catch (error) {
		if (error.status !== 503) throw error;
		toast(error.message, { kind: "bad" }); // this browser has forgotten the session all the same
	}
	signedOut(false);
}

// --- What is shown

function draw() {
	frame();
	const page = PAGES[state.page];
	const { problem, context } = state;
	// What is of another address stays until this one's is there, and not beside what went wrong with this one.
	const data = problem && state.of !== context.params ? null : state.data;
	const main = document.getElementById("main");
	const isInside = main.contains(document.activeElement);
	patch(
		main,
		data === null && h("h1", { key: "title" }, problem && context.params.size ? h("a", { href: href(state.page) }, page.title()) : page.title()),
		problem && h("div", { key: "problem" }, data && h("p", { class: "stale" }, t("app.stale")), problemBox(problem, load)),
		data === null
			? !problem && h("p", { key: "loading", class: "empty" }, t("app.loading"))
			: h("div", { key: `page-${state.page}`, class: problem ? "page old" : "page" }, page.render(data, context)),
	);
	// What had the focus may be gone: then that begins at the content anew, not at the top of the window.
	if (isInside && document.activeElement === document.body) main.focus({ preventScroll: true });
}

// What stays there all the time, for each part of it to be patched by itself.
function skeleton() {
	const main = h("main", { id: "main", tabindex: "-1" });
	const skip = (event) => {
		event.preventDefault();
		main.focus();
	};
	document.body.append(
		h("a", { id: "skip", class: "skip", href: "#main", onclick: skip }),
		h("header", { id: "head", class: "head" }),
		h("div", { id: "notice" }),
		main,
		h("div", { id: "toasts", role: "status", "aria-live": "polite" }),
	);
}

function frame() {
	const { page, session } = state;
	const part = (id, ...children) => patch(document.getElementById(id), ...children);
	document.documentElement.lang = language;
	document.title = [PAGES[page]?.title(), session?.node, t("app.name")].filter(Boolean).join(" · ");
	part("skip", t("app.skip"));
	part(
		"head",
		h("a", { class: "brand", href: href("overview") }, h("span", { class: "bloom", "aria-hidden": "true" }), t("app.name")),
		h(
			"nav",
			{ "aria-label": t("app.menu") },
			session &&
				Object.entries(PAGES).map(([name, { title }]) =>
					h("a", { href: href(name), "aria-current": name === page ? "page" : null }, title()),
				),
		),
		h("div", { class: "tools" }, session && liveTools(), languages(), session?.authentication === "on" && signOutButton()),
	);
	part("notice", session?.authentication === "off" && h("p", { class: "notice", role: "status" }, t("app.open")));
}

function signOutButton() {
	return button(t("app.signOut"), signOut, { title: t("app.signedIn", { actor: state.session.actor }) });
}

function liveTools() {
	const shown = paused ? "paused" : live.state;
	return [
		h("span", { class: "live", role: "status" }, badge(shown, t(`app.live.${shown}`))),
		button(paused ? t("app.resume") : t("app.pause"), pause, { title: paused ? t("app.resumeTitle") : t("app.pauseTitle") }),
	];
}

function languages() {
	return select(Object.entries(LANGUAGES), language, relabel, { "aria-label": t("app.language"), class: "language" });
}

function relabel(next) {
	choose(next);
	if (state.session) draw();
	else showSignIn();
}

function pause() {
	paused = !paused;
	clearTimeout(due);
	due = 0;
	if (paused) live.stop();
	else {
		live.start();
		load();
	}
	setTimeout(frame); // when the button is busy no more, or it would keep its label
}

history.scrollRestoration = "manual";
addEventListener("hashchange", ({ oldURL }) => {
	if (oldURL) left.set(new URL(oldURL).hash, { top: scrollY, link: document.activeElement?.getAttribute("href") });
	open();
});
document.addEventListener("visibilitychange", () => {
	// A browser has few connections for all its tabs: one that nobody looks at holds none.
	if (!state.session || paused) return;
	if (document.hidden) live.stop("connecting");
	else live.start();
});
// What no page has dealt with is said all the same.
addEventListener("unhandledrejection", ({ reason }) => {
	if (reason instanceof Problem) toast(`${whatFailed(reason)} ${reason.message}`, { kind: "bad" });
});
onUnauthorized(() => state.session && signedOut(true));

async function start() {
	try {
		await askSession();
		if (state.session) begin();
	} catch (error) {
		patch(document.getElementById("main"), problemBox(error, start));
		setTimeout(start, POLL_MS);
	}
}

skeleton();
frame();
start();
