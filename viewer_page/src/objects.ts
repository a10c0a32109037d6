// Found objects: those in view are asked for once the view stands still, and drawn over the slide.

import { about, ask, Refused, type Found, type Slide } from "./api";
import { byId, el } from "./dom";
import { whole } from "./format";
import type { Pane } from "./pane";

/** More than is seen on each side, as a share of it: a short way needs no new answer. */
const BESIDE = 0.2;

export class Objects {
  private asked = "";
  private loading = new AbortController();

  /** `first`: whose numbers stand in the panel. */
  constructor(
    private readonly pane: Pane,
    private readonly first: boolean,
  ) {}

  /** Another slide. */
  forget(): void {
    this.loading.abort();
    this.asked = "";
    if (this.first) byId("objects-block").hidden = !this.pane.shows?.has_objects;
  }

  async show(shown: boolean): Promise<void> {
    this.pane.overlay.showObjects(shown);
    const slide = this.pane.shows;
    const seen = this.pane.seen;
    if (!slide?.has_objects || !seen || !shown) return;
    const query = new URLSearchParams({
      left: (seen.left - BESIDE * seen.width).toFixed(1),
      top: (seen.top - BESIDE * seen.height).toFixed(1),
      right: (seen.left + (1 + BESIDE) * seen.width).toFixed(1),
      bottom: (seen.top + (1 + BESIDE) * seen.height).toFixed(1),
    }).toString();
    if (query === this.asked) return;
    this.asked = query;
    this.loading.abort();
    const { signal } = (this.loading = new AbortController());
    await this.load(slide, query, seen.l0PerPx, signal);
  }

  private async load(slide: Slide, query: string, l0PerPx: number, signal: AbortSignal): Promise<void> {
    try {
      const found = await ask<Found>(`${about(this.pane.run, slide.slide_id, "objects")}?${query}`, signal);
      if (signal.aborted) return;
      this.pane.overlay.objects(found, l0PerPx);
      if (this.first) say(found);
    } catch (error) {
      if (!signal.aborted && this.first) byId("objects-note").textContent = error instanceof Refused ? error.message : "";
    }
  }
}

function say(found: Found): void {
  const several = found.classes.length > 1;
  byId("objects-classes").replaceChildren(
    ...found.classes.map(({ name, colour, in_view }) => {
      const chip = el("i", { class: "chip" });
      chip.style.background = colour;
      return el("li", {}, chip, el("span", {}, name), several && el("span", { class: "number" }, whole(in_view)));
    }),
  );
  const of = `${whole(found.in_view)} of ${whole(found.n_objects)} in view or close to it`;
  byId("objects-note").textContent = found.cells ? `${of}: too many to draw, so shaded by their number. Zoom in to see each.` : `${of}.`;
}
