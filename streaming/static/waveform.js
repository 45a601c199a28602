/** The sound as bars: heard, received, spoken but not here, and still to come. */

const PITCH_PX = 4;
const BAR_PX = 2.5;
const LEAST_PX = 3;
const LEAST_LOUD = 0.2; // what is quieter throughout is not drawn as if it were loud
const STEADY = 0.45; // height of a bar whose loudness is not known,
const ABSENT = 0.12; // and of one whose sound is not here

export class Waveform {
  #canvas;
  #pen;
  #levels = [];
  #colours = {};
  #painted = "";

  constructor(canvas) {
    this.#canvas = canvas;
    this.#pen = canvas.getContext("2d");
    new ResizeObserver(() => this.refresh()).observe(canvas);
    for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
      matchMedia(query).addEventListener("change", () => this.refresh());
    }
  }

  /** How many bars fit. */
  get count() {
    return Math.max(1, Math.floor(this.#canvas.clientWidth / PITCH_PX));
  }

  /** What was painted is out of date: size, colours or sound have changed. */
  refresh() {
    this.#painted = "";
  }

  /** Loudness of each bar, NaN where nothing is here. */
  set levels(levels) {
    const loudest = levels.reduce((most, level) => Math.max(most, level || 0), LEAST_LOUD);
    this.#levels = levels.map((level) => level / loudest);
    this.refresh();
  }

  /**
   * Paint. Shares of the whole, 0 to 1: `position`, `edge` (how far it is spoken), `marks`, and
   * `reach`, how far it is received where its loudness is not known.
   */
  paint({ position, edge, reach, marks }) {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const pixel = (share) => Math.round(share * width * devicePixelRatio);
    const place = [position, edge, reach, ...marks].map(pixel).join();
    if (place === this.#painted || !width) return;
    if (!this.#painted) this.#prepare(width, height);
    this.#painted = place;
    this.#pen.clearRect(0, 0, width, height);
    const { count } = this;
    for (let i = 0; i < count; i++) {
      const [from, to] = [i / count, (i + 1) / count];
      const isSpoken = from < edge;
      const level = this.#levels[i] ?? (from < reach ? STEADY : NaN);
      const isHere = level >= 0; // not NaN
      const tall = !isSpoken ? 0 : isHere ? level : ABSENT;
      const size = Math.max(LEAST_PX, tall * (height - 8));
      const bar = [(i / count) * width, (height - size) / 2, BAR_PX, size];
      this.#bar(bar, !isSpoken ? "future" : isHere ? "received" : "edge");
      if (from < position) this.#bar(bar, "spoken", Math.min(1, (position - from) / (to - from)));
    }
    this.#pen.fillStyle = this.#colours.ink;
    for (const mark of marks.filter((share) => share > 0)) {
      this.#pen.beginPath();
      this.#pen.arc(mark * width, height - 2, 2, 0, 7);
      this.#pen.fill();
    }
  }

  #prepare(width, height) {
    this.#canvas.width = width * devicePixelRatio;
    this.#canvas.height = height * devicePixelRatio;
    this.#pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    const style = getComputedStyle(this.#canvas);
    for (const name of ["spoken", "received", "edge", "future", "ink"]) {
      this.#colours[name] = style.getPropertyValue(`--wave-${name}`);
    }
  }

  #bar([x, y, width, height], colour, share = 1) {
    this.#pen.fillStyle = this.#colours[colour];
    this.#pen.beginPath();
    (this.#pen.roundRect ?? this.#pen.rect).call(this.#pen, x, y, width * share, height, BAR_PX / 2);
    this.#pen.fill();
  }
}
