/** Frames to samples at 48 kHz: Opus through WebCodecs, PCM by doubling its rate. */

import { CODEC } from "./protocol.js";

const OPUS = { codec: "opus", sampleRate: 48_000, numberOfChannels: 1 };
const PACKET_US = 20_000;
const TAPS = 12; // input samples on each side of a new one

/** The codecs this browser plays, best first. */
export async function playableCodecs() {
  try {
    if ((await AudioDecoder.isConfigSupported(OPUS)).supported) return ["opus", "pcm"];
  } catch {
    // No WebCodecs here: PCM it is.
  }
  return ["pcm"];
}

/** A decoder for frames like `frame`; `emit(samples)` gets Float32Arrays in order. */
export function decoderFor(frame, skip, { emit, fail }) {
  return frame.codec === CODEC.opus ? new OpusDecoder(skip, emit, fail) : new PcmDecoder(emit);
}

class OpusDecoder {
  #decoder;
  #count = 0;

  constructor(skip, emit, fail) {
    this.delay = skip;
    this.#decoder = new AudioDecoder({
      output(sound) {
        const samples = new Float32Array(sound.numberOfFrames);
        sound.copyTo(samples, { planeIndex: 0, format: "f32-planar" });
        sound.close();
        emit(samples);
      },
      error: fail,
    });
    this.#decoder.configure(OPUS);
  }

  decode({ packets }) {
    for (const data of packets) {
      const timestamp = PACKET_US * this.#count++;
      this.#decoder.decode(new EncodedAudioChunk({ type: "key", timestamp, data }));
    }
  }

  flush() {
    return this.#decoder.flush();
  }

  close() {
    if (this.#decoder.state !== "closed") this.#decoder.close();
  }
}

/** Blackman-windowed sinc at the half-sample points of 24 kHz. */
const HALF_BAND = Float32Array.from({ length: 2 * TAPS }, (_, i) => {
  const x = i - TAPS + 0.5;
  const window = 0.42 + 0.5 * Math.cos((Math.PI * x) / TAPS) + 0.08 * Math.cos((2 * Math.PI * x) / TAPS);
  return (window * Math.sin(Math.PI * x)) / (Math.PI * x);
});

class PcmDecoder {
  delay = 2 * TAPS;
  #past = new Float32Array(2 * TAPS);
  #emit;

  constructor(emit) {
    this.#emit = emit;
  }

  decode({ pcm }) {
    const input = new Float32Array(this.#past.length + pcm.length);
    input.set(this.#past);
    for (let i = 0; i < pcm.length; i++) input[this.#past.length + i] = pcm[i] / 32_768;
    const out = new Float32Array(2 * pcm.length);
    for (let i = 0; i < pcm.length; i++) {
      let between = 0;
      for (let k = 0; k < HALF_BAND.length; k++) between += HALF_BAND[k] * input[i + 1 + k];
      out[2 * i] = input[i + TAPS];
      out[2 * i + 1] = between;
    }
    this.#past = input.slice(pcm.length);
    this.#emit(out);
  }

  async flush() {
    this.decode({ pcm: new Int16Array(TAPS) });
  }

  close() {}
}
