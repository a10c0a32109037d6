// One slide under its attention: an OpenSeadragon viewer with two layers, and an SVG overlay in level-0 pixels.

import OpenSeadragon from "openseadragon";

import { pictures, type Slide } from "./api";
import { el } from "./dom";
import { Overlay } from "./overlay";
import { release } from "./quiet";
import { mapQuery, type View } from "./state";

export interface Place {
  x: number;
  y: number;
  z: number;
}

export interface PaneEvents {
  /** The pointer is at this level-0 point, or has left. */
  pointed(pane: Pane, at: { x: number; y: number } | null): void;
  /** The view has moved, by whomever; `busy` while it still does. */
  moved(pane: Pane, busy: boolean): void;
  /** What is to be shown by now. */
  view(): View;
  /** The user has begun to move this pane. */
  taken(pane: Pane): void;
}

const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
const SLIDE_PAINTED = "wsi-ips-first-picture";

// OpenSeadragon would add a style element, which the server's policy forbids, unless it finds this one: an element of
// that name which is no stylesheet, being in no namespace that browsers know. The rule itself is in style.css.
const decoy = document.createElementNS("urn:wsi-ips", "style");
decoy.setAttribute("data-openseadragon-mobile-css", "true");

// A tile that arrives after the user has moved on is no news.
const osd = OpenSeadragon as unknown as { console: { warn(...said: unknown[]): void } };
osd.console = {
  ...osd.console,
  warn: (...said: unknown[]) => {
    if (!String(said[0]).startsWith("Ignoring tile")) console.warn(...said);
  },
};

export class Pane {
  readonly element: HTMLElement;
  readonly overlay = new Overlay();
  private readonly viewer: OpenSeadragon.Viewer;
  private readonly message = el("div", { class: "message", role: "status", hidden: true });
  private readonly navigatorBox = el("div", { class: "navigator", "aria-hidden": "true" });
  private slide: Slide | null = null;
  private heat: OpenSeadragon.TiledImage | null = null;
  private heatAsked = "";
  /** How many slides were asked for, and which of them the viewer was given. */
  private asked = 0;
  private given = 0;
  private wanted: Place | null = null;
  private open = false;
  /** A slide was asked for, and its pictures are not open yet. */
  private awaited = false;
  /** The whole slide is shown, before a change of size that the viewer may not know of yet. */
  private whole = true;

  constructor(
    readonly run: number,
    title: string,
    private readonly events: PaneEvents,
  ) {
    if (!decoy.isConnected) document.head.append(decoy);
    const stage = el("div", { class: "pane-slide" });
    const caption = el("div", { class: "pane-title" }, title);
    this.element = el("div", { class: "pane", "data-run": String(run) }, stage, caption, this.message);
    document.getElementById("panes")?.append(this.element);
    stage.append(this.navigatorBox);
    this.viewer = new OpenSeadragon.Viewer({
      element: stage,
      drawer: "canvas",
      showNavigationControl: false,
      showNavigator: true,
      navigatorElement: this.navigatorBox,
      navigatorDrawer: "canvas",
      navigatorOpacity: 1,
      keyboardNavEnabled: false,
      animationTime: calm.matches ? 0 : 0.45,
      springStiffness: 9,
      zoomPerScroll: 1.3,
      zoomPerClick: 2,
      visibilityRatio: 0.4,
      minZoomImageRatio: 0.6,
      maxZoomPixelRatio: 8,
      imageLoaderLimit: 6,
      preserveImageSizeOnResize: true,
      blendTime: 0,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true },
    } as OpenSeadragon.Options);
    stage.append(this.overlay.element);
    this.listen(stage);
  }

  private listen(stage: HTMLElement): void {
    const { viewer, events } = this;
    viewer.addHandler("open", () => this.opened());
    viewer.addHandler("update-viewport", () => this.drawn());
    viewer.addHandler("animation-start", () => this.tell("moving", true));
    viewer.addHandler("animation", () => {
      this.whole = this.fits;
      events.moved(this, true);
    });
    viewer.addHandler("animation-finish", () => {
      this.tell("moving", false);
      events.moved(this, false);
    });
    viewer.world.addHandler("add-item", (event) => {
      const { item } = event as unknown as { item: OpenSeadragon.TiledImage };
      item.addHandler("fully-loaded-change", () => this.tellLoaded());
      this.tellLoaded();
    });
    viewer.addHandler("resize", () => this.resized());
    viewer.addHandler("canvas-press", () => events.taken(this));
    viewer.addHandler("canvas-scroll", () => events.taken(this));
    stage.addEventListener("focusin", () => events.taken(this));
    const point = (event: PointerEvent) => {
      const box = stage.getBoundingClientRect();
      events.pointed(this, this.l0At(event.clientX - box.left, event.clientY - box.top));
    };
    stage.addEventListener("pointermove", point);
    stage.addEventListener("pointerdown", point);
    stage.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") events.pointed(this, null);
    });
    viewer.canvas.setAttribute("aria-label", "Slide; arrow keys move it, + and − zoom");
    viewer.canvas.setAttribute("role", "img");
  }

  get shows(): Slide | null {
    return this.slide;
  }

  get isOpen(): boolean {
    return this.open;
  }

  /** Another slide, or the same one anew, is on its way. */
  get isAwaiting(): boolean {
    return this.awaited;
  }

  /** What the pane is about, for its style and for whoever drives the page. */
  private tell(what: "moving" | "loaded", is: boolean): void {
    this.element.dataset[what] = String(is);
  }

  private tellLoaded(): void {
    const { world } = this.viewer;
    const items = [...Array(world.getItemCount()).keys()].map((number) => world.getItemAt(number));
    const painted = items.every((item) => item.getOpacity() === 0 || item.getFullyLoaded());
    this.tell("loaded", painted && !this.awaited);
  }

  /** A slide was asked for, which is to be shown at `place`, or whole. Until it comes, the one before it stays. */
  await(place: Place | null): void {
    this.asked += 1;
    this.awaited = true;
    this.wanted = place;
    this.tellLoaded();
  }

  /** What the viewer was given is open, or there was nothing to open. */
  private arrived(): void {
    this.awaited = this.given < this.asked;
    this.tellLoaded();
  }

  /** Another slide: its picture where there is one, its attention where there is some, and why not otherwise. */
  show(slide: Slide, view: View): void {
    this.slide = slide;
    this.given = this.asked;
    this.open = false;
    this.heat = null;
    this.overlay.clear();
    const layers: OpenSeadragon.TileSourceSpecifier[] = [];
    if (slide.l0_size && !slide.slide_problem) {
      layers.push({ tileSource: this.source(slide, "slide", "jpg", ""), width: 1 });
    }
    if (slide.maps) {
      this.heatAsked = mapQuery(view);
      const heat = this.source(slide, "heat", "png", this.heatAsked);
      layers.push({ tileSource: heat, width: 1, opacity: shownOpacity(view) });
    }
    this.explain(slide);
    if (slide.l0_size && slide.slide_problem) this.overlay.frame(slide.l0_size);
    if (layers.length) {
      this.viewer.open(layers);
    } else {
      this.viewer.close();
      this.arrived();
    }
  }

  /** Nothing is to be seen here, and why. */
  empty(why: string): void {
    this.slide = null;
    this.given = this.asked;
    this.open = false;
    this.heat = null;
    this.overlay.clear();
    this.viewer.close();
    this.arrived();
    this.say("", why);
  }

  private opened(): void {
    const { world, viewport } = this.viewer;
    this.open = true;
    this.arrived();
    const hasSlide = Boolean(this.slide && !this.slide.slide_problem);
    this.heat = this.slide?.maps ? (world.getItemAt(world.getItemCount() - 1) ?? null) : null;
    this.fade(this.events.view());
    this.recolour(this.events.view());
    if (hasSlide) this.noteFirstPicture(world.getItemAt(0));
    else release();
    viewport.goHome(true);
    if (this.awaited) return; // another slide was asked for meanwhile
    if (this.wanted) this.go(this.wanted, true);
    else this.fit(true);
    this.drawn();
    this.events.moved(this, false);
  }

  private noteFirstPicture(item: OpenSeadragon.TiledImage): void {
    if (performance.getEntriesByName(SLIDE_PAINTED).length) return;
    item.addHandler("fully-loaded-change", (event) => {
      const whole = (event as unknown as { fullyLoaded: boolean }).fullyLoaded;
      if (!whole || performance.getEntriesByName(SLIDE_PAINTED).length) return;
      requestAnimationFrame(() => {
        performance.mark(SLIDE_PAINTED);
        release();
      });
    });
  }

  /** Whose attention, in which colours: new tiles. One change at a time, the last one wins. */
  recolour(view: View): void {
    const asked = mapQuery(view);
    const { slide, heat } = this;
    if (!slide?.maps || !heat || asked === this.heatAsked) return;
    this.heatAsked = asked;
    this.heat = null;
    const { given } = this;
    this.viewer.addTiledImage({
      tileSource: this.source(slide, "heat", "png", asked),
      width: 1,
      index: this.viewer.world.getIndexOfItem(heat),
      replace: true,
      opacity: shownOpacity(view),
      success: (event: unknown) => {
        if (given !== this.given) return;
        this.heat = (event as { item: OpenSeadragon.TiledImage }).item;
        const now = this.events.view();
        this.fade(now);
        this.recolour(now);
      },
    });
  }

  /** How strongly attention covers the slide, if at all. */
  fade(view: View): void {
    this.heat?.setOpacity(shownOpacity(view));
    this.tellLoaded();
  }

  private source(slide: Slide, layer: string, kind: string, query: string): object {
    const [width, height] = slide.l0_size as [number, number];
    const top = 32 - Math.clz32(Math.max(width, height) - 1);
    const base = `${pictures(this.run, slide.slide_id)}/${layer}`;
    const rest = `?${query}${query && "&"}v=${slide.v}`;
    return {
      width,
      height,
      tileSize: slide.tile_px,
      tileOverlap: 0,
      minLevel: Math.max(0, top - Math.max(0, Math.ceil(Math.log2(Math.max(width, height) / slide.tile_px)))),
      maxLevel: top,
      getTileUrl: (level: number, x: number, y: number) => `${base}/${level}/${x}_${y}.${kind}${rest}`,
    };
  }

  private explain(slide: Slide): void {
    if (slide.status === "failed" && !slide.has_attention) {
      this.say("This slide failed", slide.error);
    } else if (slide.slide_problem && slide.status !== "waiting") {
      this.say("The slide cannot be shown", slide.slide_problem);
    } else if (slide.heat_problem) {
      this.say("Its attention cannot be shown", slide.heat_problem);
    } else if (slide.status === "waiting" || slide.status === "running") {
      this.say(slide.status === "running" ? "Being predicted" : "Not predicted yet", "");
    } else {
      this.message.hidden = true;
    }
    this.message.classList.toggle("aside", Boolean(slide.maps) || !slide.slide_problem);
  }

  private say(title: string, why: string): void {
    this.message.replaceChildren(title && el("strong", {}, title), why && el("span", {}, why));
    this.message.hidden = false;
  }

  private drawn(): void {
    const scale = this.pxPerL0();
    if (scale === null) return;
    const { viewport } = this.viewer;
    const at = viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
    this.overlay.place(at.x, at.y, scale);
  }

  private pxPerL0(): number | null {
    if (!this.open || !this.slide?.l0_size) return null;
    const { viewport } = this.viewer;
    return (viewport.getContainerSize().x * viewport.getZoom(true)) / this.slide.l0_size[0];
  }

  /** The level-0 point under a point of the pane. */
  private l0At(x: number, y: number): { x: number; y: number } | null {
    if (!this.open || !this.slide?.l0_size) return null;
    const at = this.viewer.viewport.pointFromPixel(new OpenSeadragon.Point(x, y), true);
    return { x: at.x * this.slide.l0_size[0], y: at.y * this.slide.l0_size[0] };
  }

  /** Where the view is now. */
  get place(): Place | null {
    return this.placeOf(true);
  }

  /** Where the view is going: to the slide that was asked for, or where it was moved; null: the whole slide. */
  get goal(): Place | null {
    if (this.awaited) return this.wanted;
    return !this.open || this.fits ? null : this.placeOf(false);
  }

  private placeOf(now: boolean): Place | null {
    if (!this.open || !this.slide?.l0_size) return null;
    const { viewport } = this.viewer;
    const width = this.slide.l0_size[0];
    const centre = viewport.getCenter(now);
    return { x: centre.x * width, y: centre.y * width, z: width / (viewport.getContainerSize().x * viewport.getZoom(now)) };
  }

  /** What is seen now, in level-0 pixels. */
  get seen(): { left: number; top: number; width: number; height: number; l0PerPx: number } | null {
    const scale = this.pxPerL0();
    if (scale === null || !this.slide?.l0_size) return null;
    const l0 = this.slide.l0_size[0];
    const { x, y, width, height } = this.viewer.viewport.getBounds(true);
    return { left: x * l0, top: y * l0, width: width * l0, height: height * l0, l0PerPx: 1 / scale };
  }

  go(place: Place, immediately = false): void {
    if (!this.open || !this.slide?.l0_size) {
      this.wanted = place;
      return;
    }
    const { viewport } = this.viewer;
    const width = this.slide.l0_size[0];
    viewport.zoomTo(width / (viewport.getContainerSize().x * place.z), undefined, immediately);
    viewport.panTo(new OpenSeadragon.Point(place.x / width, place.y / width), immediately);
    this.whole = this.fits;
  }

  /** All that was scanned, in points of the viewport: the slide is 1 wide. */
  private get home(): OpenSeadragon.Rect {
    const [width, height] = this.slide?.l0_size ?? [1, 1];
    const [x, y, w, h] = this.slide?.bounds ?? [0, 0, width, height];
    return new OpenSeadragon.Rect(x / width, y / width, w / width, h / width);
  }

  /** The whole slide is shown, as `fit` shows it. Asked of open slides alone. */
  private get fits(): boolean {
    const [home, seen] = [this.home, this.viewer.viewport.getBounds()];
    const tight = Math.max(home.width / seen.width, home.height / seen.height);
    return Math.abs(tight - 1) < 0.02;
  }

  fit(immediately = false): void {
    if (!this.open) return;
    this.viewer.viewport.fitBounds(this.home, immediately);
    this.whole = true;
  }

  /** A slide that was whole is whole in the new size too; any other view keeps its centre and its scale. This may
   * come after a slide has opened: the viewer learns its size from one frame to the next. */
  private resized(): void {
    const { whole } = this;
    requestAnimationFrame(() => {
      if (whole) this.fit(true);
      this.events.moved(this, false);
    });
  }

  zoomBy(factor: number): void {
    if (!this.open) return;
    this.viewer.viewport.zoomBy(factor).applyConstraints();
  }

  /** Move by shares of the pane. */
  panBy(x: number, y: number): void {
    if (!this.open) return;
    const size = this.viewer.viewport.getBounds();
    const by = new OpenSeadragon.Point(x * size.width, y * size.height);
    this.viewer.viewport.panBy(by).applyConstraints();
  }

  /** Level-0 pixels per pixel at which `l0` fill a quarter of the pane. */
  closeUp(l0: number): number {
    const size = this.viewer.viewport.getContainerSize();
    return (l0 * 4) / Math.min(size.x, size.y);
  }

  destroy(): void {
    this.viewer.destroy();
    this.element.remove();
  }
}

function shownOpacity(view: View): number {
  return view.heat ? view.opacity : 0;
}
