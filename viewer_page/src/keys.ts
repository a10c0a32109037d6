// Keys, and the panel that tells them.

import { byId, el } from "./dom";

export interface Key {
  keys: string[];
  shown: string;
  does: string;
  run(event: KeyboardEvent): void;
}

function types(target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false;
  if (target instanceof HTMLInputElement) return ["search", "text", "number"].includes(target.type);
  return target instanceof HTMLTextAreaElement || target.isContentEditable;
}

/** Elements for which arrows, digits and letters mean something of their own. */
function usesKey(target: EventTarget | null, key: string): boolean {
  if (types(target)) return true;
  if (target instanceof HTMLSelectElement) return key.length === 1 || key.startsWith("Arrow");
  if (target instanceof HTMLInputElement) return key.startsWith("Arrow") || key === " " || key === "+" || key === "-";
  return false;
}

export function bindKeys(keys: Key[]): void {
  const help = byId<HTMLDialogElement>("help");
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (usesKey(event.target, event.key)) return;
    const bound = keys.find((key) => key.keys.includes(event.key));
    if (!bound) return;
    event.preventDefault();
    bound.run(event);
  });
  byId("keys").replaceChildren(
    ...keys
      .filter((key) => key.shown)
      .flatMap((key) => [
        el("dt", {}, ...key.shown.split(" ").map((each) => el("kbd", {}, each))),
        el("dd", {}, key.does),
      ]),
  );
  byId("help-open").addEventListener("click", () => help.showModal());
  byId("help-close").addEventListener("click", () => help.close());
  help.addEventListener("click", (event) => {
    if (event.target === help) help.close();
  });
}

export function toggleHelp(): void {
  const help = byId<HTMLDialogElement>("help");
  if (help.open) help.close();
  else help.showModal();
}
