/** How one person wants the page, kept in this browser. */

const KEY = "clickloop.settings";
/** @type {{keys: "clickloop" | "cvat" | "label-studio" | "labelme", opacity: number, colourBy: "category" | "object", crosshair: boolean}} */
const DEFAULTS = { keys: "clickloop", opacity: 0.4, colourBy: "category", crosshair: false };

function stored() {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "{}");
  } catch {
    return {};
  }
}

/** Opacity of the inside of a mask in [0, 1]; the colour of a mask tells its category, or the objects apart. */
export const settings = { ...DEFAULTS, ...stored() };

/** @param {Partial<typeof DEFAULTS>} changes */
export function change(changes) {
  Object.assign(settings, changes);
  localStorage.setItem(KEY, JSON.stringify(settings));
}
