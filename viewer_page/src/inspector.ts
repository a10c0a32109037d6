// What is said of the slide, and how its attention is shown: prediction, legend, controls, patches.

import type { Held, Legend, Patch, Patches, Run, Slide } from "./api";
import { pictures } from "./api";
import { byId, el } from "./dom";
import { commonPower, gradient, length, percent, short, signed, whole } from "./format";
import { loadQuietly } from "./quiet";
import { ofClass, type Colormap, type Scale, type Store, type View } from "./state";

const STEPS = 1000;
const BEYOND = { "": "", "<=": "≤ ", ">=": "≥ " };
/** The widest that the ends can be set to, in times the even share; the server's own are EVEN_ENDS. */
const EVEN_RANGE: [number, number] = [1 / 16, 1024];
const EVEN_ENDS: [number, number] = [0.25, 64];

/** What was predicted, and what the manifest says; of both runs where two are compared. */
export function drawPrediction(slides: { run: Run; slide: Slide | null }[]): void {
  const first = slides[0]?.slide;
  const parts: Node[] = [];
  if (first) {
    const labels = Object.entries(first.labels).filter(([, label]) => label);
    parts.push(
      el("div", { class: "block-head" }, el("h2", { class: "slide-name", title: first.slide_id }, first.slide_id)),
    );
    if (labels.length) {
      const text = labels.map(([task, label]) => (labels.length > 1 ? `${task}: ${label}` : label)).join(", ");
      parts.push(
        el("p", { class: "truth" }, "Labelled ", el("b", {}, text), first.split ? ` · ${first.split}` : ""),
      );
    }
  }
  for (const { run, slide } of slides) {
    if (slides.length > 1) parts.push(el("p", { class: "of-run" }, run.name));
    parts.push(...predictionOf(run, slide));
  }
  byId("about").replaceChildren(...parts);
}

function predictionOf(run: Run, slide: Slide | null): Node[] {
  if (!slide) return [el("p", { class: "faint" }, "Not in this run.")];
  if (slide.status === "failed") return [el("p", { class: "failed-text" }, el("b", {}, "Failed. "), slide.error)];
  if (slide.status !== "ok") return [el("p", { class: "faint" }, slide.status)];
  const parts: Node[] = run.tasks.flatMap((task) => {
    const shares = slide.probabilities[task.name];
    if (!shares) return [];
    const rows = task.classes.map((name) => {
      const value = shares[name] ?? null;
      const said = (slide.predicted[task.name] ?? "").split("|").includes(name);
      const linear = task.activation === "linear";
      const bar = el("i", { class: "bar-of" }, el("i"));
      (bar.firstElementChild as HTMLElement).style.width = `${Math.min(1, Math.max(0, value ?? 0)) * 100}%`;
      return el(
        "tr",
        { class: said && !linear ? "said" : "" },
        el("th", { scope: "row" }, name),
        el("td", {}, linear ? null : bar),
        el("td", { class: "number" }, value === null ? "–" : linear ? short(value) : percent(value)),
      );
    });
    const caption = run.tasks.length > 1 ? el("caption", {}, task.name) : null;
    return [el("table", { class: "shares" }, caption, el("tbody", {}, ...rows))];
  });
  if (!parts.length) parts.push(el("p", { class: "faint" }, "No prediction is stored; its attention is."));
  if (slide.wrong) parts.push(el("p", { class: "wrong" }, "Predicted otherwise than labelled."));
  if (slide.case) parts.push(el("p", { class: "of-case" }, ...caseInWords(slide.case)));
  if (slide.error) parts.push(el("p", { class: "failed-text" }, slide.error));
  return parts;
}

/** That the answer is the case's, and how much of its attention this slide has. */
function caseInWords({ case_id, slides, share }: NonNullable<Slide["case"]>): (Node | string)[] {
  const others = slides.length ? slides.length === 1 ? "the one slide" : `the ${slides.length} slides` : "all slides";
  const has = share === null ? "" : ` This slide has ${percent(share)} of the attention.`;
  return ["Part of case ", el("b", { title: slides.join(", ") }, case_id), `: one answer from ${others} of it.${has}`];
}

export function drawFacts(slide: Slide | null): void {
  const facts: [string, string][] = [];
  if (slide?.l0_size) {
    const [width, height] = slide.l0_size;
    facts.push(["Size", `${whole(width)} × ${whole(height)} px`]);
    if (slide.mpp) {
      facts.push(["", `${length(width * slide.mpp)} × ${length(height * slide.mpp)}`]);
      facts.push(["Resolution", `${Number(slide.mpp.toPrecision(4))} µm a pixel`]);
    }
    if (slide.n_patches !== null) facts.push(["Patches", whole(slide.n_patches)]);
    if (slide.patch_px && slide.patch_mpp) {
      facts.push(["", `of ${slide.patch_px} px at ${slide.patch_mpp} µm`]);
    }
    if (slide.n_kept) facts.push(["Kept", `${whole(slide.n_kept)} in memory`]);
    if (slide.bad_tiles) facts.push(["Unreadable", `${whole(slide.bad_tiles)} tiles, taken as white`]);
    if (slide.vendor) facts.push(["Format", `${slide.vendor}, read by ${slide.reader}`]);
  }
  byId("facts").replaceChildren(
    el("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
  );
  byId("facts").hidden = !facts.length;
}

/** The colour bar with raw values, and where on it the value under the pointer lies. */
export class LegendBar {
  readonly element = el("figure", { class: "legend" });
  private readonly marker = el("i", { class: "marker", hidden: true });

  draw(legend: Legend, title: string): void {
    const ofClasses = legend.map !== "attention";
    const strip = el("div", { class: "strip" }, this.marker);
    strip.style.background = gradient(legend.colours);
    const last = legend.ticks.length - 1;
    const power = ofClasses ? 0 : commonPower(legend.ticks.map((tick) => tick.value));
    const ticks = legend.ticks.map((tick, place) => {
      const mark = el(
        "div",
        { class: "tick" + (place === 0 ? " first" : place === last ? " last" : "") },
        el(
          "span",
          { class: "times" },
          BEYOND[tick.beyond] + (ofClasses ? signed(tick.value) : `${short(tick.times_even)}×`),
        ),
        !ofClasses && el("span", { class: "raw" }, short(tick.value / 10 ** power)),
        el("span", { class: "faint" }, `P${Math.floor(tick.percentile * 10) / 10}`),
      );
      mark.style.left = `${tick.at * 100}%`;
      return mark;
    });
    const times = (value: number | null) => short((value ?? 0) / legend.even_share);
    const even = ofClasses
      ? ` ${legend.map === "gradient" ? "Gradient times input of a patch" : "What a patch adds to its logit"}: ${legend.spread}.`
      : legend.n_patches
      ? ` ${times(legend.min)} to ${times(legend.max)} times the even share, ${short(legend.even_share)}.`
      : "";
    this.element.replaceChildren(
      title && el("p", { class: "of-run" }, title),
      strip,
      el("div", { class: "ticks" }, ...ticks),
      ...(legend.flat
        ? [el("p", { class: "flat" }, el("b", {}, "Flat. "), "Every patch has about the even share of attention.")]
        : []),
      el("figcaption", {}, power ? el("b", {}, "× 10", el("sup", {}, String(power).replace("-", "−"))) : null, `${power ? " · " : ""}${legend.shown}.${even}`),
    );
    this.point(null);
  }

  clear(why: string): void {
    this.element.replaceChildren(el("p", { class: "faint" }, why));
  }

  point(held: Held | null): void {
    this.marker.hidden = held === null;
    if (held) this.marker.style.left = `${held.at * 100}%`;
  }
}

/** The patches with the largest values; a click flies there. */
export function drawPatches(
  run: number,
  slide: Slide,
  { patches, map, class: name }: Patches,
  fly: (patch: Patch, button: HTMLElement) => void,
): void {
  byId("patches-title").textContent =
    map === "contribution" ? `Add most to ${name}` : map === "gradient" ? `Largest gradient for ${name}` : "Most attention";
  const items = patches.map((patch) => {
    const picture = slide.slide_problem ? null : el("img", { alt: "", decoding: "async" });
    if (picture) loadQuietly(picture, `${pictures(run, slide.slide_id)}/patch/${patch.id}.jpg?v=${slide.v}`);
    const chip = el("i", { class: "chip" });
    chip.style.background = patch.colour;
    const said = `Patch ${patch.rank}, ${map} ${short(patch.value)}${patch.kept ? ", kept in memory" : ""}`;
    const button = el(
      "button",
      { type: "button", "data-patch": String(patch.id), "aria-label": said, title: said },
      picture,
      el("span", { class: "patch-line" }, chip, el("span", { class: "number" }, short(patch.value))),
      patch.kept && el("span", { class: "kept", "aria-hidden": "true" }),
    );
    button.addEventListener("click", () => fly(patch, button));
    return el("li", {}, button);
  });
  byId("patches").replaceChildren(...items);
  byId("patches-block").hidden = !items.length;
}

/** Whoever moves a control changes the view, and the view moves the controls. */
export class Controls {
  private readonly opacity = byId<HTMLInputElement>("opacity");
  private readonly heat = byId<HTMLInputElement>("heat");
  private readonly low = byId<HTMLInputElement>("low");
  private readonly high = byId<HTMLInputElement>("high");
  private readonly of = byId<HTMLSelectElement>("of");
  private readonly head = byId<HTMLSelectElement>("head");
  private readonly outlines = byId<HTMLInputElement>("outlines");
  private readonly objects = byId<HTMLInputElement>("objects");
  private range: [number, number] = [0, 1];

  constructor(private readonly store: Store) {
    this.heat.addEventListener("change", () => store.update({ heat: this.heat.checked }));
    this.opacity.addEventListener("input", () => {
      store.update({ opacity: Number(this.opacity.value) / 100, heat: true });
    });
    this.low.addEventListener("input", () => this.ends("low"));
    this.high.addEventListener("input", () => this.ends("high"));
    this.of.addEventListener("change", () => {
      // Heads have attention: without one, the choice is what it says.
      const withoutHead = this.of.value === "" || /^(class|gradient):/.test(this.of.value);
      store.update(withoutHead ? { of: this.of.value, head: null } : { of: this.of.value });
    });
    this.head.addEventListener("change", () => {
      store.update({ head: this.head.value === "" ? null : Number(this.head.value) });
    });
    this.outlines.addEventListener("change", () => store.update({ outlines: this.outlines.checked }));
    this.objects.addEventListener("change", () => store.update({ objects: this.objects.checked }));
    for (const input of document.querySelectorAll<HTMLInputElement>('input[name="scale"]')) {
      input.addEventListener("change", () => {
        store.update({ scale: input.value as Scale, low: null, high: null });
      });
    }
    for (const input of document.querySelectorAll<HTMLInputElement>('input[name="colormap"]')) {
      input.addEventListener("change", () => store.update({ colormap: input.value as Colormap }));
    }
    this.draw(store.view);
  }

  /** The slide's choices: classes, tasks, queries, heads. */
  choices(slide: Slide | null): void {
    const maps = slide?.maps ?? null;
    const tasks = Object.entries(maps?.task_queries ?? {});
    const read = new Set(tasks.map(([, query]) => query));
    const others = [...Array(maps?.queries ?? 0).keys()].filter((query) => !read.has(query));
    const several = (maps?.queries ?? 1) > 1;
    const told = maps?.contributions ?? [];
    const mean = several ? "mean over queries" : "the slide";
    const options: [string, string][] = [
      ...(told.length
        ? [
            ["", "contribution (default class)"] as [string, string],
            ...told.map(([task, name]): [string, string] => [ofClass("class", task, name), `contribution to ${name}, ${task}`]),
            ["attention", several ? "attention, mean over queries" : "attention"] as [string, string],
          ]
        : [["", mean] as [string, string]]),
      ...(maps?.gradients ?? []).map(([task, name]): [string, string] => [ofClass("gradient", task, name), `gradient for ${name}, ${task}`]),
      ...(several ? tasks : []).map(([name]): [string, string] => [`task:${name}`, `task ${name}`]),
      ...(several ? others : []).map((query): [string, string] => [`query:${query}`, `query ${query}`]),
    ];
    fill(this.of, options);
    byId("of-row").hidden = options.length < 2;
    const heads = maps?.heads ?? 1;
    fill(this.head, [
      ["", `mean over ${heads} heads`],
      ...[...Array(heads).keys()].map((head): [string, string] => [String(head), `head ${head}`]),
    ]);
    byId("head-row").hidden = heads < 2;
    byId("outlines-row").hidden = !slide?.has_outlines;
    byId("controls").classList.toggle("off", !maps);
    this.draw(this.store.view);
  }

  /** The raw values that the colours can go over; contributions have one scale and no heads. */
  values(legend: Legend): void {
    const ofClasses = legend.map !== "attention";
    byId("heat-title").textContent = { attention: "Attention", contribution: "Contribution", gradient: "Gradient" }[legend.map];
    byId("controls").classList.toggle("of-class", ofClasses);
    this.range = [legend.min ?? 0, legend.max ?? 1];
    this.draw(this.store.view);
  }

  /** The next of a select's choices, for the keyboard. */
  next(which: "of" | "head"): void {
    const select = this[which];
    if (select.options.length < 2) return;
    select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
    select.dispatchEvent(new Event("change"));
  }

  draw(view: View): void {
    this.heat.checked = view.heat;
    this.opacity.value = String(Math.round(view.opacity * 100));
    byId("opacity-out").textContent = `${Math.round(view.opacity * 100)} %`;
    const [least, most] = this.span(view).map(bent(view.scale)) as [number, number];
    const place = (value: number) =>
      String(Math.round(((bent(view.scale)(value) - least) / (most - least || 1)) * STEPS));
    const [low, high] = view.scale === "even" ? EVEN_ENDS : this.span(view);
    this.low.value = place(view.low ?? low);
    this.high.value = place(view.high ?? high);
    const said = (value: number) =>
      view.scale === "rank" ? `P${Number(value.toFixed(1))}` : short(value) + (view.scale === "even" ? "×" : "");
    byId("low-out").textContent = said(view.low ?? low);
    byId("high-out").textContent = said(view.high ?? high);
    this.of.value = view.of;
    if (this.of.selectedIndex < 0) this.of.selectedIndex = 0;
    this.head.value = view.head === null ? "" : String(view.head);
    this.outlines.checked = view.outlines;
    this.objects.checked = view.objects;
    for (const name of ["scale", "colormap"] as const) {
      for (const input of document.querySelectorAll<HTMLInputElement>(`input[name="${name}"]`)) {
        input.checked = input.value === view[name];
      }
    }
  }

  private span(view: View): [number, number] {
    if (view.scale === "even") return EVEN_RANGE;
    return view.scale === "rank" ? [0, 100] : this.range;
  }

  /** The two ends never meet: there would be no colours between them. */
  private ends(moved: "low" | "high"): void {
    let [low, high] = [Number(this.low.value), Number(this.high.value)];
    if (low >= high) {
      if (moved === "low") low = Math.max(0, high - 1);
      else high = Math.min(STEPS, low + 1);
      if (low >= high) [low, high] = moved === "low" ? [high - 1, high] : [low, low + 1];
    }
    const { scale } = this.store.view;
    const [least, most] = this.span(this.store.view).map(bent(scale)) as [number, number];
    const value = (step: number) => {
      const along = least + (step / STEPS) * (most - least);
      return Number((scale === "even" ? 2 ** along : along).toPrecision(6));
    };
    // At the end of its way a slider gives the choice back, but for multiples: their own ends lie further in.
    const own = (end: "low" | "high", at: boolean, step: number) =>
      at && scale !== "even" ? null : moved === end || scale !== "even" ? value(step) : this.store.view[end];
    this.store.update({ low: own("low", low <= 0, low), high: own("high", high >= STEPS, high), heat: true });
    this.draw(this.store.view);
  }
}

/** Multiples of the even share lie on their slider by their logarithm. */
function bent(scale: Scale): (value: number) => number {
  return (value) => (scale === "even" ? Math.log2(value) : value);
}

function fill(select: HTMLSelectElement, options: [string, string][]): void {
  select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
}
