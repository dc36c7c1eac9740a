// Whether the page is up to date by itself: one stream of events for all of it.
//
//   connecting ─▶ live ◀─▶ reconnecting ─▶ polling (the stream is blocked, held back, or cannot be had)
//   paused: a person reads and wants nothing to move; also while nobody looks at the tab.

const TYPES = ["task", "lease", "worker", "probe", "service", "audit", "reset"];

// A stream of which nothing is seen by then does not come through; it is still tried.
const BLOCKED_MS = 6000;

// There is a pulse every 15 s: where three fail to come, the stream is lost, whatever the browser thinks.
const SILENT_MS = 45_000;

// Between two tries for a stream that the browser has given up.
const RETRY_MS = 5000;

export class Live {
	#source = null;
	#timer = 0;
	#state = "connecting";

	// onEvent(type, entry), onState(state), onClosed(): the server has refused the stream, maybe for want of a session.
	constructor({ onEvent, onState, onClosed }) {
		Object.assign(this, { onEvent, onState, onClosed });
	}

	get state() {
		return this.#state;
	}

	start() {
		this.stop("connecting");
		const source = (this.#source = new EventSource("/api/runtime/events?pulse=true"));
		this.#in(BLOCKED_MS, () => this.#become("polling"));
		const alive = () => {
			this.#in(SILENT_MS, () => this.start());
			// What has changed while there was no stream is not told any more.
			if (this.#state !== "live") this.onEvent("reset", null);
			this.#become("live");
		};
		source.addEventListener("pulse", alive);
		source.onerror = () => {
			if (this.#state === "live" || this.#state === "connecting") this.#become("reconnecting");
			if (source.readyState === EventSource.CLOSED) {
				this.onClosed();
				this.#in(RETRY_MS, () => this.start());
			} else this.#in(BLOCKED_MS, () => this.#become("polling"));
		};
		for (const type of TYPES)
			source.addEventListener(type, (event) => {
				alive();
				this.onEvent(type, type === "reset" ? null : JSON.parse(event.data));
			});
	}

	stop(state = "paused") {
		clearTimeout(this.#timer);
		this.#source?.close();
		this.#source = null;
		this.#become(state);
	}

	#in(ms, act) {
		clearTimeout(this.#timer);
		this.#timer = setTimeout(act, ms);
	}

	#become(state) {
		if (state === this.#state) return;
		this.#state = state;
		this.onState(state);
	}
}
