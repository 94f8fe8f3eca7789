"""Exports small Keras networks to ONNX, by tf2onnx and by Keras itself, and writes their weights beside them.

It runs in an environment of its own, with tensorflow-cpu and tf2onnx.
"""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras import layers

HERE = Path(__file__).resolve().parent


def mlp():
    return keras.Sequential([layers.Input((6,)), layers.Dense(8, "relu"), layers.Dense(4, "softmax")])


def cnn():
    return keras.Sequential([
        layers.Input((12, 12, 3)), layers.Conv2D(5, 2, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(6, 2, strides=2, padding="same", activation="relu"), layers.Flatten(), layers.Dense(8, "relu"), layers.Dropout(0.5),
        layers.Dense(4, "softmax")])


def resnet():
    x = start = layers.Input((8, 8, 2))
    x = layers.Conv2D(5, 3, use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = before = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(((0, 1), (1, 1)))(x))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(5, 3, padding="same", use_bias=False)(x)))
    x = layers.BatchNormalization()(layers.Conv2D(5, 3, padding="same", use_bias=False)(x))
    x = layers.ReLU()(layers.Add()([x, before]))
    return keras.Model(start, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


if __name__ == "__main__":
    for name, build in {"keras-mlp": mlp, "keras-cnn": cnn, "keras-resnet": resnet}.items():
        keras.utils.set_random_seed(1)
        model = build()
        random = np.random.default_rng(1)
        # Biases and statistics that are not 0 and 1.
        model.set_weights([
            w if w.ndim > 1 else (random.uniform(0.5, 1.5, w.shape) if w.mean() > 0.5 else random.normal(size=w.shape) * 0.2)
            for w in model.get_weights()])
        x = random.normal(size=(2, *model.input_shape[1:])).astype(np.float32)
        x[0] = np.abs(x[0])
        np.savez(HERE / f"{name}.npz", *model.get_weights(), x=x)
        signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="x")]
        tf2onnx.convert.from_function(
            tf.function(lambda x: model(x, training=False)), signature, opset=15, output_path=str(HERE / f"{name}-tf2onnx.onnx"))
        model.export(str(HERE / f"{name}-export.onnx"), format="onnx", verbose=False)
        print(name, model.output_shape)
