// What both image encoders end with: two convolutions without bias, each with a layer norm over channels.
import { type Device, nn, type Tensor } from "../../engine/index.ts";

export class Neck extends nn.Module {
  0: nn.Conv2d;
  1: nn.LayerNorm2d;
  2: nn.Conv2d;
  3: nn.LayerNorm2d;

  constructor(gpu: Device, inDim: number, outDim: number) {
    super();
    this[0] = new nn.Conv2d(gpu, inDim, outDim, 1, { bias: false });
    this[1] = new nn.LayerNorm2d(gpu, outDim, { eps: 1e-6 });
    this[2] = new nn.Conv2d(gpu, outDim, outDim, 3, { padding: 1, bias: false });
    this[3] = new nn.LayerNorm2d(gpu, outDim, { eps: 1e-6 });
  }

  /** (B, inDim, g, g) -> (B, outDim, g, g) */
  forward(x: Tensor): Tensor {
    const y = this[1].forward(this[0].forward(x));
    return this[3].forward(this[2].forward(y));
  }
}
