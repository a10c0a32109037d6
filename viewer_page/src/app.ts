// The page at work: the view on one side, panes, list and panels on the other.

import { about, ask, Refused, type Legend, type Patches, type Run, type Slide } from "./api";
import { byId, el } from "./dom";
import { Controls, drawFacts, drawPatches, drawPrediction, LegendBar } from "./inspector";
import type { Key } from "./keys";
import { Objects } from "./objects";
import type { Polygons } from "./overlay";
import { Pane, type PaneEvents, type Place } from "./pane";
import { closePanels } from "./panels";
import { Pointer } from "./pointer";
import { drawPlace, drawScale, drawValue } from "./readout";
import { SlideList } from "./slide_list";
import { fromHash, mapQuery, SCALES, START, toHash, type Store, type View } from "./state";

const TOP = 24;
const LOOK_AGAIN_MS = 5000;
const MAP: (keyof View)[] = ["colormap", "scale", "low", "high", "of", "head"];

interface Side {
  pane: Pane;
  slide: Slide | null;
  legend: LegendBar;
  objects: Objects;
}

export class App implements PaneEvents {
  private readonly list: SlideList;
  private readonly controls: Controls;
  private readonly pointer: Pointer;
  private sides: Side[] = [];
  private leader: Pane | null = null;
  private following = false;
  /** The run whose value the line at the bottom tells. */
  private read = 0;
  private patchesOf = 0;
  private loading = new AbortController();
  private colouring = 0;
  private written = "";

  constructor(
    private readonly store: Store,
    private readonly runs: Run[],
  ) {
    this.list = new SlideList(runs[0]?.tasks ?? [], (slideId) => this.choose(slideId));
    this.controls = new Controls(store);
    this.pointer = new Pointer((run, held) => {
      if (run === this.read) drawValue(held);
      this.sides[run]?.legend.point(held === "unknown" ? null : held);
    });
    byId("run-name").textContent = runs.map((run) => run.name).join(" · ");
    document.title = `${runs[0]?.name ?? "run"} · wsi-ips`;
    byId("compare").hidden = runs.length < 2;
    byId("compare").addEventListener("click", () => this.toggle("compare"));
    byId("zoom-in").addEventListener("click", () => this.lead.zoomBy(1.6));
    byId("zoom-out").addEventListener("click", () => this.lead.zoomBy(1 / 1.6));
    byId("zoom-fit").addEventListener("click", () => this.lead.fit());
    byId("zoom-full").addEventListener("click", () => this.fullSize());
    store.listen((view, changed) => this.changed(view, changed));
    window.addEventListener("hashchange", () => this.restore());
  }

  async start(): Promise<void> {
    this.layOut();
    const { view } = this.store;
    const loaded = view.slide === null ? null : this.load(view.place);
    await this.refresh(view.slide);
    if (view.slide === null && this.list.first) this.store.update({ slide: this.list.first });
    await loaded;
  }

  private get lead(): Pane {
    return this.leader ?? (this.sides[0] as Side).pane;
  }

  /** at: the page of the list that this slide is on, else the page that is shown. */
  private async refresh(at: string | null = null): Promise<void> {
    let unfinished = true;
    try {
      const page = await this.list.load(undefined, at);
      unfinished = page.unfinished;
      this.list.select(this.store.view.slide);
      const shown = this.sides[0]?.slide;
      const now = page.slides.find((slide) => slide.slide_id === shown?.slide_id);
      if (shown && now && now.status !== shown.status) void this.load(this.store.view.place);
    } catch (error) {
      // Another page was asked for meanwhile.
      if (!(error instanceof DOMException && error.name === "AbortError")) throw error;
    }
    if (unfinished) setTimeout(() => void this.refresh().catch(() => undefined), LOOK_AGAIN_MS);
  }

  private choose(slideId: string): void {
    closePanels();
    this.store.update({ slide: slideId, place: null });
  }

  private toggle(what: "heat" | "outlines" | "objects" | "compare"): void {
    if (what === "compare" && this.runs.length < 2) return;
    this.store.update({ [what]: !this.store.view[what] });
  }

  private fullSize(): void {
    const place = this.lead.place;
    if (place) this.lead.go({ ...place, z: 1 / window.devicePixelRatio });
  }

  // -- the view has changed ------------------------------------------------------------------------------------

  private changed(view: Readonly<View>, changed: ReadonlySet<keyof View>): void {
    // A pane of another width fits the slide anew, if the slide was whole in the old one.
    const place = changed.has("compare") && !changed.has("place") ? this.lead.goal : view.place;
    if (changed.has("compare")) this.layOut();
    if (changed.has("slide") || changed.has("compare")) void this.load(place);
    this.controls.draw(view);
    if (changed.has("heat") || changed.has("opacity")) this.sides.forEach(({ pane }) => pane.fade(view));
    if (changed.has("outlines")) this.sides.forEach(({ pane }) => pane.overlay.showOutlines(view.outlines));
    if (changed.has("objects")) this.showObjects();
    if (MAP.some((key) => changed.has(key))) {
      clearTimeout(this.colouring);
      this.colouring = window.setTimeout(() => void this.recolour(), 90);
    }
    this.write();
  }

  private write(): void {
    this.written = toHash(this.store.view);
    if (location.hash !== this.written) history.replaceState(null, "", this.written);
  }

  /** The user went to another address of this page. */
  private restore(): void {
    if (location.hash === this.written) return;
    const view = fromHash(location.hash);
    const same = view.slide === this.store.view.slide;
    this.store.update({ ...view, slide: view.slide ?? this.store.view.slide });
    if (same && view.place) this.lead.go(view.place);
  }

  /** As many panes as there are runs to be seen. */
  private layOut(): void {
    const wanted = this.store.view.compare && this.runs.length > 1 ? this.runs : this.runs.slice(0, 1);
    byId("panes").classList.toggle("two", wanted.length > 1);
    while (this.sides.length > wanted.length) this.sides.pop()?.pane.destroy();
    for (const run of wanted.slice(this.sides.length)) {
      const pane = new Pane(this.sides.length, run.name, this);
      const objects = new Objects(pane, this.sides.length === 0);
      this.sides.push({ pane, slide: null, legend: new LegendBar(), objects });
    }
    this.leader = this.sides[0]?.pane ?? null;
    this.patchesOf = Math.min(this.patchesOf, wanted.length - 1);
    byId("compare").setAttribute("aria-pressed", String(wanted.length > 1));
    byId("legends").replaceChildren(...this.sides.map((side) => side.legend.element));
    this.drawPatchesOf(wanted);
  }

  private drawPatchesOf(runs: Run[]): void {
    const box = byId("patches-of");
    box.hidden = runs.length < 2;
    box.replaceChildren(
      ...runs.map((run, number) => {
        const input = el("input", { type: "radio", name: "patches-of", value: String(number) });
        input.checked = number === this.patchesOf;
        input.addEventListener("change", () => {
          this.patchesOf = number;
          void this.showPatches();
        });
        return el("label", {}, input, el("span", {}, run.name));
      }),
    );
  }

  // -- a slide ---------------------------------------------------------------------------------------------------

  private async load(place: Place | null): Promise<void> {
    const slideId = this.store.view.slide;
    if (slideId === null) return;
    this.loading.abort();
    const { signal } = (this.loading = new AbortController());
    this.list.select(slideId);
    this.list.reveal(slideId);
    byId("bar-slide").textContent = slideId;
    this.pointer.forget();
    for (const { pane } of this.sides) pane.await(place);
    await Promise.all(this.sides.map((side, run) => this.loadSide(side, run, slideId, signal)));
    if (signal.aborted) return;
    const first = this.sides.find((side) => side.slide)?.slide ?? null;
    drawPrediction(this.sides.map(({ slide }, run) => ({ run: this.runs[run] as Run, slide })));
    drawFacts(first);
    this.controls.choices(first);
    this.showPlace(null);
    await Promise.all([this.showLegends(signal), this.showPatches(), this.showOutlines(signal)]);
  }

  private async loadSide(side: Side, run: number, slideId: string, signal: AbortSignal) {
    try {
      side.slide = await ask<Slide>(about(run, slideId), signal);
      side.pane.show(side.slide, this.store.view);
      side.objects.forget();
    } catch (error) {
      if (signal.aborted) return;
      side.slide = null;
      side.pane.empty(error instanceof Refused ? error.message : "The server does not answer.");
      side.objects.forget();
    }
  }

  private async recolour(): Promise<void> {
    const { view } = this.store;
    this.sides.forEach(({ pane }) => pane.recolour(view));
    this.pointer.forget();
    await Promise.all([this.showLegends(this.loading.signal), this.showPatches()]);
  }

  private async showLegends(signal: AbortSignal): Promise<void> {
    const { view } = this.store;
    await Promise.all(
      this.sides.map(async ({ slide, legend }, run) => {
        if (!slide?.maps) {
          legend.clear(slide?.heat_problem ?? "There is no attention to show.");
          return;
        }
        try {
          const answer = await ask<Legend>(`${about(run, slide.slide_id, "legend")}?${mapQuery(view)}`, signal);
          legend.draw(answer, this.sides.length > 1 ? (this.runs[run]?.name ?? "") : "");
          if (run === 0) this.controls.values(answer);
        } catch (error) {
          if (error instanceof Refused) legend.clear(error.message);
        }
      }),
    );
  }

  private async showPatches(): Promise<void> {
    const run = this.patchesOf;
    const side = this.sides[run];
    const { signal } = this.loading;
    byId("patches-block").hidden = !side?.slide?.maps;
    if (!side?.slide?.maps) return;
    const { slide, pane } = side;
    const asked = `${about(run, slide.slide_id, "patches")}?top=${TOP}&${mapQuery(this.store.view)}`;
    try {
      const answer = await ask<Patches>(asked, signal);
      const { l0_patch } = answer;
      drawPatches(run, slide, answer, (patch, button) => {
        for (const other of document.querySelectorAll("#patches [aria-current]")) other.removeAttribute("aria-current");
        button.setAttribute("aria-current", "true");
        this.sides.forEach((each) => each.pane.overlay.markPatch(patch, l0_patch));
        this.leader = pane;
        closePanels();
        const centre = { x: patch.l0_x + l0_patch / 2, y: patch.l0_y + l0_patch / 2 };
        pane.go({ ...centre, z: pane.closeUp(l0_patch) });
      });
    } catch {
      byId("patches-block").hidden = true;
    }
  }

  private async showOutlines(signal: AbortSignal): Promise<void> {
    await Promise.all(
      this.sides.map(async ({ slide, pane }, run) => {
        if (!slide?.has_outlines) return;
        try {
          const { polygons } = await ask<{ polygons: Polygons }>(about(run, slide.slide_id, "outlines"), signal);
          pane.overlay.outlines(polygons);
          pane.overlay.showOutlines(this.store.view.outlines);
        } catch (error) {
          if (error instanceof Refused) byId("outlines-row").title = error.message;
        }
      }),
    );
  }

  private showObjects(): void {
    for (const { objects } of this.sides) void objects.show(this.store.view.objects);
  }

  // -- panes -----------------------------------------------------------------------------------------------------

  view(): View {
    return this.store.view;
  }

  taken(pane: Pane): void {
    this.leader = pane;
  }

  moved(pane: Pane, busy: boolean): void {
    if (this.following) return;
    const place = pane.place;
    if (pane !== this.lead || !place) {
      // A pane that opens after the other one takes its place from it.
      const led = this.lead.place;
      if (!busy && led && pane !== this.lead) this.follow(led, pane);
      if (!busy) this.showObjects();
      return;
    }
    for (const side of this.sides) if (side.pane !== pane && side.pane.isOpen) this.follow(place, side.pane);
    drawScale(pane.shows, place.z);
    if (!this.pointer.onSlide) this.showPlace(null);
    if (!busy && !pane.isAwaiting) {
      this.showObjects();
      this.store.update({ place: { x: Math.round(place.x), y: Math.round(place.y), z: Number(place.z.toPrecision(5)) } });
    }
  }

  private follow(place: Place, pane: Pane): void {
    this.following = true;
    pane.go(place, true);
    this.following = false;
  }

  pointed(pane: Pane, at: { x: number; y: number } | null): void {
    this.pointer.onSlide = at !== null;
    for (const side of this.sides) side.pane.overlay.pointAt(side.pane === pane ? null : at);
    if (!at) {
      this.showPlace(null);
      return;
    }
    this.read = pane.run;
    drawPlace(pane.shows, at, true);
    this.askValues(at);
  }

  /** Without a pointer the middle of the view is told: keyboards and fingers read values too. */
  private showPlace(at: { x: number; y: number } | null): void {
    const place = at ?? this.lead.place;
    this.read = this.lead.run;
    drawPlace(this.lead.shows, place, at !== null);
    if (place) this.askValues(place);
    else drawValue("unknown");
  }

  private askValues(at: { x: number; y: number }): void {
    this.sides.forEach(({ slide }, run) => {
      if (slide?.maps) this.pointer.ask(run, slide, at, this.store.view);
      else if (run === this.read) drawValue("unknown");
    });
  }

  // -- keys ------------------------------------------------------------------------------------------------------

  keys(): Key[] {
    const { store } = this;
    const pan = (x: number, y: number) => () => this.lead.panBy(x, y);
    const beside = (step: number) => () => {
      void this.list.beside(step).then((next) => {
        if (next !== null && next !== store.view.slide) this.choose(next);
      }, () => undefined);
    };
    const fade = (step: number) => () => {
      const opacity = Math.round(Math.min(1, Math.max(0, store.view.opacity + step)) * 100) / 100;
      store.update({ opacity, heat: true });
    };
    return [
      { keys: ["n", "]"], shown: "n", does: "Next slide", run: beside(1) },
      { keys: ["p", "["], shown: "p", does: "Previous slide", run: beside(-1) },
      { keys: ["/"], shown: "/", does: "Search slides", run: () => this.list.focusSearch() },
      { keys: ["ArrowLeft"], shown: "← ↑ → ↓", does: "Move", run: pan(-0.2, 0) },
      { keys: ["ArrowRight"], shown: "", does: "", run: pan(0.2, 0) },
      { keys: ["ArrowUp"], shown: "", does: "", run: pan(0, -0.2) },
      { keys: ["ArrowDown"], shown: "", does: "", run: pan(0, 0.2) },
      { keys: ["+", "="], shown: "+", does: "Zoom in", run: () => this.lead.zoomBy(1.6) },
      { keys: ["-", "_"], shown: "−", does: "Zoom out", run: () => this.lead.zoomBy(1 / 1.6) },
      { keys: ["0"], shown: "0", does: "Whole slide", run: () => this.lead.fit() },
      { keys: ["1"], shown: "1", does: "One pixel per pixel", run: () => this.fullSize() },
      { keys: ["h"], shown: "h", does: "Colours on or off", run: () => this.toggle("heat") },
      { keys: [","], shown: ",", does: "Fainter", run: fade(-0.1) },
      { keys: ["."], shown: ".", does: "Stronger", run: fade(0.1) },
      {
        keys: ["m"], shown: "m", does: "Other colours",
        run: () => store.update({ colormap: store.view.colormap === "blue_red" ? "blue_yellow" : "blue_red" }),
      },
      {
        keys: ["s"], shown: "s", does: "Even share, rank or raw value",
        run: () => {
          const next = SCALES[(SCALES.indexOf(store.view.scale) + 1) % SCALES.length] ?? START.scale;
          store.update({ scale: next, low: null, high: null });
        },
      },
      { keys: ["q"], shown: "q", does: "Next class, task or query", run: () => this.controls.next("of") },
      { keys: ["g"], shown: "g", does: "Next head", run: () => this.controls.next("head") },
      { keys: ["o"], shown: "o", does: "Lesion outlines on or off", run: () => this.toggle("outlines") },
      { keys: ["d"], shown: "d", does: "Found objects on or off", run: () => this.toggle("objects") },
      ...(this.runs.length > 1
        ? [{ keys: ["c"], shown: "c", does: "Side by side", run: () => this.toggle("compare") }]
        : []),
    ];
  }
}
