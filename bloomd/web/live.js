// Whether the page is up to date by itself: one stream of events for all of it.
//
//   connecting ─▶ live ◀─▶ reconnecting ─▶ polling (the stream is blocked, or cannot be had: then asking now and then)
//   paused: a person reads and wants nothing to move; also while nobody looks at the tab.

const TYPES = ["task", "lease", "worker", "probe", "service", "audit", "reset"];

// A stream that has not begun by then does not come through; it is still tried.
const BLOCKED_MS = 6000;

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
		const source = (this.#source = new EventSource(`/api/runtime/events`));
		this.#timer = setTimeout(() => this.#become("polling"), BLOCKED_MS);
		source.onopen = () => {
			clearTimeout(this.#timer);
			// What has changed while there was no stream is not told any more.
			if (this.#state !== "live") this.onEvent("reset", null);
			this.#become("live");
		};
		source.onerror = () => {
			clearTimeout(this.#timer);
			if (this.#state === "live" || this.#state === "connecting") this.#become("reconnecting");
			if (source.readyState === EventSource.CLOSED) {
				this.onClosed();
				this.#timer = setTimeout(() => this.start(), RETRY_MS);
			} else this.#timer = setTimeout(() => this.#become("polling"), BLOCKED_MS);
		};
		for (const type of TYPES)
			source.addEventListener(type, (event) => this.onEvent(type, type === "reset" ? null : JSON.parse(event.data)));
	}

	stop(state = "paused") {
		clearTimeout(this.#timer);
		this.#source?.close();
		this.#source = null;
		this.#become(state);
	}

	#become(state) {
		if (state === this.#state) return;
		this.#state = state;
		this.onState(state);
	}
}
