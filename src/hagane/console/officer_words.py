"""Words of contracts in plain English and Japanese, for people who write neither contracts nor code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Both:
    """The same in two languages."""

    en: str
    """English."""
    ja: str
    """Japanese."""


PURPOSES = {
    "anchor": Both("training the shared model", "共通モデルの学習"),
    "member-training": Both("training a member's own part", "会員専用部分の学習"),
    "statistics": Both("pooled statistics", "統計値の集計"),
    "router": Both("tuning the shared router", "共有ルーターの調整"),
    "finetune": Both("fine-tuning", "追加学習"),
    "evaluate": Both("evaluation", "評価"),
    "distil": Both("distilling a smaller model", "小型モデルへの蒸留"),
    "merge": Both("merging into the union", "統合モデルへの組み込み"),
    "serve": Both("operating machines", "機械の運転"),
    "view": Both("looking at it", "閲覧"),
    "export": Both("taking a copy out", "複製の持ち出し"),
}
"""Purposes of contracts."""
CLASSES = {
    "E": Both(
        "E: the data lives in the member's own part alone, which is taken out exactly",
        "E:データは会員専用部分にのみ残り、その部分を完全に取り除きます",
    ),
    "R": Both("R: the shared router is tuned again without the member", "R:その会員を除いて共有ルーターを再調整します"),
    "D": Both("D: rights are revoked and the model is trained again", "D:利用権を取り消し、モデルを学習し直します"),
}
"""What withdrawing means."""
PROTECTION = {
    "jail": Both(
        "encrypted on disk; opened only inside an isolated process without network",
        "ディスク上では暗号化され、ネットワークから隔離されたプロセス内でのみ復号されます",
    ),
    "process": Both(
        "plain files; the program asks the contract before it reads",
        "暗号化されていないファイルで、プログラムが読み取り前に契約を確認します",
    ),
}
"""How data is kept."""
BEYOND = (
    Both(
        "copies of the folder of keys (backups, snapshots, another site): "
        "destroy them too, or the data can be read again",
        "鍵フォルダーの複製(バックアップ、スナップショット、他の拠点)。あわせて破棄しない限り、データは再び読めます",
    ),
    Both(
        "keys that a process running now was given: they end with that process",
        "実行中のプロセスに渡された鍵。プロセスの終了とともに失われます",
    ),
    Both(
        "what a journal or a flash disk keeps of bytes that were overwritten",
        "ファイルシステムのジャーナルやフラッシュディスクに残る、上書き前のデータ",
    ),
    Both(
        "plaintext outside the sealed folders: the owner's own files, and copies that a person made",
        "暗号化フォルダー外の平文(所有者自身のファイルや、人が作成した複製)",
    ),
)
"""What erasing a key never reaches: `hagane.seal.key_life.ALWAYS_OUT_OF_REACH` in both languages."""
