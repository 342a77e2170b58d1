// What is looked at before another runtime is given an ONNX model as it is: where its data lies, in its nodes too, and that weights are finite.
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { checkOnnx, checkpointParts } from "../../model/weights/index.ts";
import { external, message, number, type Place } from "../protobuf.ts";
import { message as thrown } from "./fixture.ts";

const test = suite("ONNX models checked");
const [FLOAT, INT4] = [1, 22];
const NAN = Buffer.from(Float32Array.of(1, Number.NaN).buffer);

/** A TensorProto's fields, two numbers. */
const tensor = (name: string, data: Uint8Array | Place, type = FLOAT): Buffer =>
  Buffer.concat([
    number(1, 2),
    number(2, type),
    message(8, name),
    data instanceof Uint8Array ? message(9, data) : external(data),
  ]);
const initialiser = (...args: Parameters<typeof tensor>) => message(5, tensor(...args));
const node = (...attribute: Uint8Array[]) => message(1, message(5, ...attribute));
const model = (...graph: Uint8Array[]) => message(7, ...graph);

function checked(onnx: Uint8Array, parts: Record<string, Uint8Array> = {}): string {
  return thrown(() => {
    checkpointParts(onnx, "m.onnx");
    checkOnnx(onnx, "m.onnx", new Map(Object.entries(parts)));
  });
}

test("data is looked for in nodes, in graphs within them and in functions", () => {
  for (const location of ["../w", "w"]) {
    const [place, name] = [{ location }, "deep"];
    const value = message(5, tensor(name, place));
    for (const onnx of [
      model(initialiser(name, place)),
      model(node(value)),
      model(node(message(10, tensor(name, place)))),
      model(node(message(6, initialiser(name, place)))),
      model(node(message(11, node(message(6, node(value)))))),
      message(25, message(7, message(5, value))),
    ])
      if (location === "w") {
        assert.equal(checkpointParts(onnx, "m.onnx"), ["w"]);
        assert.match(checked(onnx, { w: new Uint8Array(7) }), /initialiser deep: lies at 0\.\.8 of w, beyond its end/);
        assert.is(checked(onnx, { w: new Uint8Array(8) }), "nothing was thrown");
      } else assert.match(checked(onnx), /initialiser deep: names the file "\.\.\/w", which is outside/);
  }
});

test("weights are finite wherever they lie; constants of the code need not be", () => {
  assert.match(checked(model(initialiser("a.weight", NAN))), /^m\.onnx: tensor a\.weight holds NaN \(element 1\)/);
  const outside = model(initialiser("onnx::MatMul_7", { location: "w", offset: "4" }));
  const w = new Uint8Array(Float32Array.of(0, 0, Number.NEGATIVE_INFINITY).buffer);
  assert.match(checked(outside, { w }), /^m\.onnx: tensor onnx::MatMul_7 holds -Infinity \(element 1\)/);
  assert.is(checked(model(node(message(5, tensor("", NAN))))), "nothing was thrown");
});

test("a type that is not read here is another runtime's affair, but not where its data lies", () => {
  const packed = (place: Place) => model(initialiser("q", place, INT4));
  assert.is(checked(model(initialiser("q", new Uint8Array(1), INT4))), "nothing was thrown");
  assert.is(checked(packed({ location: "w", length: "1" }), { w: new Uint8Array(1) }), "nothing was thrown");
  assert.match(checked(packed({ location: "w", length: "2" }), { w: new Uint8Array(1) }), /q: lies at 0\.\.2 of w/);
});

test("graphs within graphs to any depth are followed", () => {
  let graph: Uint8Array = initialiser("deep", { location: "../w" });
  for (let depth = 0; depth < 1000; depth++) graph = node(message(6, graph));
  assert.match(checked(model(graph)), /initialiser deep: names the file "\.\.\/w"/);
});

test.run();
