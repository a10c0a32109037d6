// The slides of the run, a page at a time: found by name, prediction, label or status, and put in order.

import type { Listed, Slides, Task } from "./api";
import { ask, pictures } from "./api";
import { byId, el } from "./dom";
import { percent, whole } from "./format";
import { loadQuietly } from "./quiet";

type Order = "run" | "name" | "sure" | "patches";

/** The first task's answer as one word and a number, as far as there are any. */
export function answer(slide: Listed, tasks: Task[]): { word: string; share: number | null; first: boolean } | null {
  const task = tasks[0];
  if (!task || slide.status !== "ok") return null;
  const word = slide.predicted[task.name];
  const shares = slide.probabilities[task.name];
  if (word === undefined || !shares) return null;
  const share = task.activation === "linear" ? null : (shares[word] ?? null);
  return { word: word || "none", share, first: word === task.classes[0] };
}

/** What is waited for after a letter of a search, before the server is asked. */
const PAUSE_MS = 150;

export class SlideList {
  private readonly list = byId<HTMLUListElement>("list");
  private readonly search = byId<HTMLInputElement>("search");
  private readonly sort = byId<HTMLSelectElement>("sort");
  private readonly pages = byId("pages");
  private page: Slides = { slides: [], first: 0, found: 0, total: 0, unfinished: false, notes: [] };
  /** Where the page begins that was asked for last: the one that is shown, or the one that is on its way. */
  private heading = 0;
  private chosen: string | null = null;
  private drawn = "";
  private asking = new AbortController();
  private pause = 0;

  constructor(
    private readonly tasks: Task[],
    private readonly choose: (slideId: string) => void,
  ) {
    const classes = tasks[0]?.activation === "softmax" ? tasks[0].classes : [];
    const orders: [Order, string][] = [["run", "as predicted"], ["name", "by name"], ["patches", "most patches"]];
    if (classes.length) orders.splice(2, 0, ["sure", `most ${classes[classes.length - 1]}`]);
    this.sort.append(...orders.map(([value, text]) => el("option", { value }, text)));
    this.sort.addEventListener("change", () => this.turn(0));
    this.search.addEventListener("input", () => {
      clearTimeout(this.pause);
      this.pause = window.setTimeout(() => this.turn(0), PAUSE_MS);
    });
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Enter") void this.chooseFirst();
      if (event.key === "ArrowDown") (this.list.querySelector("button") as HTMLElement | null)?.focus();
      if (event.key === "Escape" && this.search.value) {
        this.search.value = "";
        this.turn(0);
        event.stopPropagation();
      }
    });
    this.list.addEventListener("keydown", (event) => this.walk(event));
    this.list.addEventListener("click", (event) => {
      const button = (event.target as HTMLElement).closest<HTMLElement>("button[data-slide]");
      if (button?.dataset["slide"] !== undefined) this.choose(button.dataset["slide"]);
    });
    byId("page-before").addEventListener("click", () => this.turn(this.before(this.heading)));
    byId("page-after").addEventListener("click", () => this.turn(this.after(this.heading) ?? this.heading));
  }

  /**
   * Asks the server for a page and shows it: the one that begins with slide `first`, or the one with slide `at`.
   *
   * By default it is the page that was asked for last. A second click before the first page has come thus goes on
   * from that page, and a list that is loaded again meanwhile does not turn back.
   */
  async load(first = this.heading, at: string | null = null): Promise<Slides> {
    clearTimeout(this.pause);
    this.heading = first;
    this.asking.abort();
    const { signal } = (this.asking = new AbortController());
    const asked = new URLSearchParams({ order: this.sort.value, first: String(first) });
    const words = this.search.value.trim();
    if (words) asked.set("q", words);
    if (at !== null) asked.set("at", at);
    const page = await ask<Slides>(`/api/runs/0/slides?${asked.toString()}`, signal).catch((error: unknown) => {
      if (!signal.aborted) this.heading = this.page.first;
      throw error;
    });
    const said = JSON.stringify(page);
    this.page = page;
    this.heading = page.first;
    if (said !== this.drawn) {
      this.drawn = said;
      this.draw();
    }
    return page;
  }

  /** Turn to the page with this slide, if it is on another one that can be shown. */
  reveal(slideId: string): void {
    const { slides, found } = this.page;
    if (slides.length === found || slides.some((slide) => slide.slide_id === slideId)) return;
    void this.load(undefined, slideId).catch(() => undefined);
  }

  /** Load a page, where nobody waits for it. A page that was asked for in vain leaves the list as it is. */
  private turn(first: number): void {
    void this.load(first)
      .then(() => {
        if (first !== 0 || this.page.first === 0) this.list.scrollTop = 0;
      })
      .catch(() => undefined);
  }

  private async chooseFirst(): Promise<void> {
    await this.load(0).catch(() => undefined);
    const first = this.page.slides[0];
    if (first) this.choose(first.slide_id);
  }

  /** Where the page before the one that begins at `first` begins. */
  private before(first: number): number {
    return Math.max(0, first - this.length);
  }

  /** Where the page after the one that begins at `first` begins; null for the last one. */
  private after(first: number): number | null {
    return first + this.length < this.page.found ? first + this.length : null;
  }

  /** How many slides a whole page has. */
  private length = 0;

  get first(): string | null {
    const { slides } = this.page;
    return (slides.find((slide) => slide.has_attention) ?? slides[0])?.slide_id ?? null;
  }

  /** The slide before or after the chosen one, in the order that is shown, on whatever page. */
  async beside(step: number): Promise<string | null> {
    const at = this.page.slides.findIndex((slide) => slide.slide_id === this.chosen);
    const next = at < 0 ? 0 : at + step;
    if (next < 0 && this.page.first > 0) {
      const { slides } = await this.load(this.before(this.page.first));
      return slides[slides.length - 1]?.slide_id ?? null;
    }
    const after = this.after(this.page.first);
    if (next >= this.page.slides.length && after !== null) {
      return (await this.load(after)).slides[0]?.slide_id ?? null;
    }
    return this.page.slides[Math.min(this.page.slides.length - 1, Math.max(0, next))]?.slide_id ?? null;
  }

  select(slideId: string | null): void {
    this.chosen = slideId;
    for (const button of this.list.querySelectorAll<HTMLElement>("button[data-slide]")) {
      const current = button.dataset["slide"] === slideId;
      if (current) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
      if (current) this.bringInSight(button);
    }
  }

  /** Not scrollIntoView: where the list is a sheet below the screen, that would move the page. */
  private bringInSight(item: HTMLElement): void {
    const [box, at] = [this.list.getBoundingClientRect(), item.getBoundingClientRect()];
    if (at.top < box.top) this.list.scrollTop -= box.top - at.top + 4;
    else if (at.bottom > box.bottom) this.list.scrollTop += at.bottom - box.bottom + 4;
  }

  focusSearch(): void {
    this.search.focus();
    this.search.select();
  }

  private walk(event: KeyboardEvent): void {
    const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    if (!step) return;
    const buttons = [...this.list.querySelectorAll<HTMLElement>("button[data-slide]")];
    const at = buttons.indexOf(document.activeElement as HTMLElement);
    if (at + step < 0) this.search.focus();
    else buttons[at + step]?.focus();
    event.preventDefault();
    event.stopPropagation();
  }

  private draw(): void {
    const { slides, found, total, first, notes } = this.page;
    this.length = Math.max(this.length, slides.length);
    const focused = (document.activeElement as HTMLElement | null)?.dataset["slide"];
    const box = byId("notes");
    box.replaceChildren(...notes.map((note) => el("p", {}, note)));
    box.hidden = !notes.length;
    this.list.replaceChildren(...slides.map((slide) => this.item(slide)));
    const word = total === 1 ? "slide" : "slides";
    byId("count").textContent = found === total ? `${whole(total)} ${word}` : `${whole(found)} of ${whole(total)} ${word}`;
    if (!slides.length) {
      const why = total ? "No slide is called that, nor predicted so." : "The run has no slides yet.";
      this.list.append(el("li", { class: "nothing" }, why));
    }
    this.pages.hidden = slides.length === found;
    byId("page-of").textContent = `${whole(first + 1)} to ${whole(first + slides.length)}`;
    byId<HTMLButtonElement>("page-before").disabled = first === 0;
    byId<HTMLButtonElement>("page-after").disabled = this.after(first) === null;
    this.select(this.chosen);
    if (focused === undefined) return;
    for (const button of this.list.querySelectorAll<HTMLElement>("button")) {
      if (button.dataset["slide"] === focused) button.focus();
    }
  }

  private item(slide: Listed): HTMLElement {
    const said = answer(slide, this.tasks);
    const picture = el("img", { alt: "", decoding: "async" });
    loadQuietly(picture, `${pictures(0, slide.slide_id)}/thumbnail.jpg`);
    let second: HTMLElement;
    if (said) {
      second = el("span", { class: "verdict" + (said.first ? "" : " found") }, el("span", { class: "word" }, said.word));
      if (said.share !== null) {
        const bar = el("i", { class: "bar-of" }, el("i"));
        (bar.firstElementChild as HTMLElement).style.width = `${said.share * 100}%`;
        second.append(bar, el("span", { class: "number" }, percent(said.share)));
      }
    } else {
      const word = { ok: "attention only", failed: "failed", waiting: "waiting", running: "running" }[slide.status];
      second = el("span", { class: `verdict ${slide.status}` }, el("span", { class: "word" }, word));
    }
    const badge = slide.wrong
      ? el("span", { class: "badge", title: `labelled ${Object.values(slide.labels).join(", ")}` }, "≠ label")
      : slide.status === "ok" && slide.error
        ? el("span", { class: "badge", title: slide.error }, "!")
        : null;
    const button = el(
      "button",
      { type: "button", "data-slide": slide.slide_id, title: slide.error || slide.slide_id },
      el("span", { class: "thumb" }, picture),
      el("span", { class: "text" }, el("span", { class: "name" }, slide.slide_id, badge), second),
    );
    return el("li", {}, button);
  }
}
