// The slides of the run: found by name, prediction, label or status, and put in order.

import type { Listed, Task } from "./api";
import { pictures } from "./api";
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

/** Whether the manifest's label says something else. */
export function wrong(slide: Listed, tasks: Task[]): boolean {
  return tasks.some((task) => {
    const label = slide.labels[task.name];
    const said = slide.predicted[task.name];
    if (!label || said === undefined || task.activation === "linear") return false;
    const labels = label === "none" ? "" : label.split(";").map((each) => each.trim()).sort().join("|");
    return labels !== said.split("|").sort().join("|");
  });
}

export class SlideList {
  private readonly list = byId<HTMLUListElement>("list");
  private readonly search = byId<HTMLInputElement>("search");
  private readonly sort = byId<HTMLSelectElement>("sort");
  private slides: Listed[] = [];
  private shown: Listed[] = [];
  private chosen: string | null = null;

  constructor(
    private readonly tasks: Task[],
    private readonly choose: (slideId: string) => void,
  ) {
    const classes = tasks[0]?.activation === "softmax" ? tasks[0].classes : [];
    const orders: [Order, string][] = [["run", "as predicted"], ["name", "by name"], ["patches", "most patches"]];
    if (classes.length) orders.splice(2, 0, ["sure", `most ${classes[classes.length - 1]}`]);
    this.sort.append(...orders.map(([value, text]) => el("option", { value }, text)));
    this.sort.addEventListener("change", () => this.draw());
    this.search.addEventListener("input", () => this.draw());
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && this.shown[0]) this.choose(this.shown[0].slide_id);
      if (event.key === "ArrowDown") (this.list.querySelector("button") as HTMLElement | null)?.focus();
      if (event.key === "Escape" && this.search.value) {
        this.search.value = "";
        this.draw();
        event.stopPropagation();
      }
    });
    this.list.addEventListener("keydown", (event) => this.walk(event));
    this.list.addEventListener("click", (event) => {
      const button = (event.target as HTMLElement).closest<HTMLElement>("button[data-slide]");
      if (button?.dataset["slide"] !== undefined) this.choose(button.dataset["slide"]);
    });
  }

  set(slides: Listed[], notes: string[]): void {
    this.slides = slides;
    const box = byId("notes");
    box.replaceChildren(...notes.map((note) => el("p", {}, note)));
    box.hidden = !notes.length;
    this.draw();
  }

  get first(): string | null {
    return (this.shown.find((slide) => slide.has_attention) ?? this.shown[0] ?? this.slides[0])?.slide_id ?? null;
  }

  /** The slide before or after the chosen one, in the order that is shown. */
  beside(step: number): string | null {
    const at = this.shown.findIndex((slide) => slide.slide_id === this.chosen);
    const next = at < 0 ? 0 : Math.min(this.shown.length - 1, Math.max(0, at + step));
    return this.shown[next]?.slide_id ?? null;
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

  private found(slide: Listed): boolean {
    const words = this.search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const said = [
      slide.slide_id,
      slide.status,
      slide.split ?? "",
      slide.error,
      ...Object.values(slide.predicted),
      ...Object.values(slide.labels),
      wrong(slide, this.tasks) ? "wrong" : "",
    ]
      .join(" ")
      .toLowerCase();
    return words.every((word) => said.includes(word));
  }

  private ordered(slides: Listed[]): Listed[] {
    const order = this.sort.value as Order;
    if (order === "run") return slides;
    if (order === "name") {
      return slides.toSorted((a, b) => a.slide_id.localeCompare(b.slide_id, undefined, { numeric: true }));
    }
    const task = this.tasks[0];
    const last = task?.classes[task.classes.length - 1] ?? "";
    const rank = (slide: Listed): number =>
      (order === "patches" ? slide.n_patches : slide.probabilities[task?.name ?? ""]?.[last]) ?? -1;
    return slides.toSorted((a, b) => rank(b) - rank(a));
  }

  private draw(): void {
    const focused = (document.activeElement as HTMLElement | null)?.dataset["slide"];
    this.shown = this.ordered(this.slides.filter((slide) => this.found(slide)));
    this.list.replaceChildren(...this.shown.map((slide) => this.item(slide)));
    const all = this.slides.length;
    const word = all === 1 ? "slide" : "slides";
    byId("count").textContent =
      this.shown.length === all ? `${whole(all)} ${word}` : `${whole(this.shown.length)} of ${whole(all)} ${word}`;
    if (!this.shown.length) {
      const why = all ? "No slide is called that, nor predicted so." : "The run has no slides yet.";
      this.list.append(el("li", { class: "nothing" }, why));
    }
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
    const badge = wrong(slide, this.tasks)
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
